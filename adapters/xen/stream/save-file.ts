/** A checkpoint as the content of an `xl save` file: what restore and export have in common. */

import type { CheckpointSource } from '../../../src/hypervisor/restore.js';
import { CheckpointError } from '../../../src/errors.js';
import type { Json, JsonObject } from '../../../src/types.js';
import { decodeDeviceState } from './device-state.js';
import type { SaveContent } from './writer.js';
import { objectOf } from '../domain/xl.js';

/** @throws STREAM_MALFORMED, REPO_DAMAGED, VM_UNSUPPORTED when the checkpoint names no configuration */
export async function saveContentOf(
  source: CheckpointSource,
  change: (config: JsonObject) => JsonObject,
  signal?: AbortSignal,
): Promise<SaveContent> {
  const { machine, layout } = source;
  const config = objectOf(machine.config);
  if (Object.keys(config).length === 0) {
    throw new CheckpointError(
      'VM_UNSUPPORTED',
      `checkpoint ${source.checkpointId} has no domain configuration`,
    );
  }
  return {
    config: JSON.stringify(change(config)),
    version: { major: versionPart(machine.xenMajor), minor: versionPart(machine.xenMinor) },
    state: decodeDeviceState(await source.deviceState()),
    layout,
    pages: source.pages(signal),
  };
}

/** Of the hypervisor that the checkpoint was taken on: 32 bits in the file. */
function versionPart(value: Json | undefined): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < 2 ** 32) return value;
  throw new CheckpointError('VM_UNSUPPORTED', 'the checkpoint does not say of which version of Xen it is');
}
