/** The device state of a guest of Xen as a repository holds it, and the file of `xl save` that is made of it. */

import { saveContentOf } from '../../../adapters/xen/stream/save-file.js';
import { decodeDeviceState, encodeDeviceState } from '../../../adapters/xen/stream/device-state.js';
import { writeSaveFile } from '../../../adapters/xen/stream/writer.js';
import { layoutOf } from '../../../adapters/xen/domain/physmap.js';
import type { CheckpointSource, PageChunk } from '../../../src/hypervisor/restore.js';
import type { Json, JsonObject } from '../../../src/types.js';
import { mutateBytes } from '../mutate-bytes.js';
import { mutateJson } from '../mutate-json.js';
import { guestConfig, pvhState, pvState } from '../small-machines.js';
import { must, type Mutate, type OpenTarget } from '../target.js';

/** A line of JSON, what the manifest says of the machine; then the device state. */
function inputOf(machine: JsonObject, state: Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from(`${JSON.stringify(machine)}\n`), state]);
}

function partsOf(input: Uint8Array): readonly [machine: Uint8Array, state: Uint8Array] {
  const end = input.indexOf(0x0a);
  return end < 0 ? [new Uint8Array(0), input] : [input.subarray(0, end), input.subarray(end + 1)];
}

const mutate: Mutate = (input, random, others) => {
  const [machine, state] = partsOf(input);
  return random(2) === 0
    ? Buffer.concat([mutateJson(machine, random, others), Buffer.from('\n'), state])
    : Buffer.concat([
        machine,
        Buffer.from('\n'),
        mutateBytes(
          state,
          random,
          others.map((one) => partsOf(one)[1]),
        ),
      ]);
};

const LAYOUT = layoutOf([
  { firstFrame: 0, frameCount: 512 },
  { firstFrame: 0xfee00, frameCount: 512 },
]);

export const openTarget: OpenTarget = () => {
  const machine = {
    config: JSON.parse(guestConfig('pvh')) as Json,
    xenMajor: 4,
    xenMinor: 17,
    guestKind: 'pvh',
  };
  return Promise.resolve({
    seeds: [
      inputOf(machine, encodeDeviceState(pvhState())),
      inputOf(machine, encodeDeviceState({ ...pvhState(), emulator: Buffer.from('QEVM') })),
      inputOf({ ...machine, guestKind: 'pv' }, encodeDeviceState(pvState())),
    ],
    mutate,
    run: async (input) => {
      const [text, state] = partsOf(input);
      const decoded = decodeDeviceState(state);
      const again = decodeDeviceState(encodeDeviceState(decoded));
      must(again.after.length === decoded.after.length, 'the records come back');
      const content = await saveContentOf(sourceOf(objectIn(text), state), (config) => config);
      let pieces = 0;
      for await (const piece of writeSaveFile(content)) pieces += piece.length > 0 ? 1 : 0;
      return `records ${Math.min(decoded.after.length, 4)} pieces ${Math.min(pieces, 12)}`;
    },
  });
};

function sourceOf(machine: JsonObject, state: Uint8Array): CheckpointSource {
  // eslint-disable-next-line @typescript-eslint/require-await -- the shape of a checkpoint's pages
  async function* pages(): AsyncGenerator<PageChunk> {
    for (const { firstPage, pageCount } of LAYOUT.regions) yield { firstPage, pageCount, bytes: null };
  }
  return {
    checkpointId: '0123456789abcdef',
    hypervisor: 'xen',
    machine,
    machineType: 'xen-pvh',
    layout: LAYOUT,
    disks: [],
    frozen: undefined,
    deviceState: () => Promise.resolve(state),
    pages,
    pagesAsStored: pages,
  };
}

/** A manifest that is no object, or too deep, is refused before anything of it gets here. */
function objectIn(text: Uint8Array): JsonObject {
  try {
    const value = JSON.parse(Buffer.from(text).toString('utf8')) as Json;
    JSON.stringify(value);
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as JsonObject) : {};
  } catch {
    return {};
  }
}
