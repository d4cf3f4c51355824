/**
 * Files of `xl save` as an import takes them, and the stream of `xl remus`. What is accepted has a device state that comes out
 * of its encoding as it went in.
 */

import { mkdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';

import { importSaveFile } from '../../../adapters/xen/import.js';
import { receiveRemus } from '../../../adapters/xen/remus/receive-remus.js';
import { decodeDeviceState, encodeDeviceState } from '../../../adapters/xen/stream/device-state.js';
import { MemoryFile } from '../../../src/intake/memory-file.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { mutateBytes } from '../mutate-bytes.js';
import { smallRemusStream, smallSaveFiles } from '../small-machines.js';
import { must, type OpenTarget } from '../target.js';

const FREE_FILE_BYTES = 16 * 2 ** 30;
const FILE_BYTES_FOR_EACH = 64 * PAGE_SIZE_BYTES;

// eslint-disable-next-line @typescript-eslint/require-await -- a stream is read asynchronously
async function* pieces(input: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < input.length; at += 5000) yield input.subarray(at, at + 5000);
}

export const openTarget: OpenTarget = async (workDir) => {
  const path = join(workDir, 'memory');
  const spools = join(workDir, 'spools');
  let memory: MemoryFile | undefined;

  function closeMemory(input: Uint8Array): void {
    memory?.close();
    memory = undefined;
    const sizeBytes = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
    rmSync(path, { force: true });
    must(sizeBytes <= FREE_FILE_BYTES + input.length * FILE_BYTES_FOR_EACH, `a file of ${sizeBytes} bytes`);
  }

  async function imported(input: Uint8Array): Promise<string> {
    try {
      const machine = await importSaveFile({
        format: 'xl',
        open: () => pieces(input),
        place: (layout) => (memory = new MemoryFile(layout, path)),
      });
      memory?.checkFilled();
      const again = encodeDeviceState(decodeDeviceState(machine.deviceState));
      must(Buffer.compare(again, machine.deviceState) === 0, 'the device state comes back');
      return machine.identity.machineType;
    } finally {
      closeMemory(input);
    }
  }

  async function received(input: Uint8Array): Promise<string> {
    mkdirSync(spools);
    const figures = { targetKib: 64, staticMaxKib: 64, currentMib: 1 };
    try {
      const request = { stream: pieces(input), workDir: spools };
      const machine = await receiveRemus(request, () => Promise.resolve(figures));
      try {
        memory = new MemoryFile(machine.layout, path);
        let states = 0;
        for (; await machine.nextState(); states++) await (await machine.claim()).apply(memory);
        memory.checkFilled();
        return `states ${states}`;
      } finally {
        machine.close();
      }
    } finally {
      rmSync(spools, { recursive: true });
      closeMemory(input);
    }
  }

  return {
    seeds: [...(await smallSaveFiles()), await smallRemusStream()],
    mutate: mutateBytes,
    run: async (input) => {
      let failure: { readonly error: unknown } | undefined;
      const first = await received(input).catch((error: unknown) => {
        failure = { error };
        return 'refused';
      });
      const second = await imported(input).catch((error: unknown) => {
        // A stream of several states is no file, and a file no stream: one of the two is refused.
        if (failure !== undefined && isOfOther(failure.error)) throw error;
        if (isOfOther(error)) return 'refused';
        throw error;
      });
      if (failure !== undefined && !isOfOther(failure.error)) throw failure.error;
      return `${first} ${second}`;
    },
  };
};

function isOfOther(error: unknown): boolean {
  return (
    error instanceof Error &&
    /first state of the guest|several checkpoints|not taken from xl remus/.test(error.message)
  );
}
