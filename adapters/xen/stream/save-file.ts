/** A checkpoint as the content of an `xl save` file: what restore and export have in common. */

import type { CheckpointSource } from '../../../src/hypervisor/restore.js';
import { CheckpointError } from '../../../src/errors.js';
import type { JsonObject } from '../../../src/types.js';
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
    version: { major: Number(machine.xenMajor), minor: Number(machine.xenMinor) },
    state: decodeDeviceState(await source.deviceState()),
    layout,
    pages: source.pages(signal),
  };
}
