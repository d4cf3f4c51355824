/** Save images of libvirt: header, domain XML and stream, as an import unpacks them into a memory file. */

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';

import { importSaveImage } from '../../../adapters/libvirt/import.js';
import { isSaveImage } from '../../../adapters/libvirt/save-image.js';
import { deviceSections } from '../../../adapters/qemu/stream/device-state.js';
import { MemoryFile } from '../../../src/intake/memory-file.js';
import { mappedMigration, saveImage } from '../../support/import-files.js';
import { mutateBytes } from '../mutate-bytes.js';
import { smallMigration } from '../small-machines.js';
import { must, type OpenTarget } from '../target.js';

const PIECE_BYTES = 4096;
/** virQEMUSaveFormat */
const GZIP = 1;
const SPARSE = 6;

// eslint-disable-next-line @typescript-eslint/require-await -- a stream is read asynchronously
async function* pieces(input: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < input.length; at += PIECE_BYTES) yield input.subarray(at, at + PIECE_BYTES);
}

export const openTarget: OpenTarget = async (workDir) => {
  const path = join(workDir, 'memory');
  const stream = await smallMigration();
  return {
    seeds: [
      saveImage(stream),
      saveImage(stream, { bigEndian: true, cookie: false }),
      saveImage(gzipSync(stream), { format: GZIP }),
      await mappedMigration(saveImage(new Uint8Array(0), { format: SPARSE })),
    ],
    mutate: mutateBytes,
    // A tree of objects for the XML, and what a few bytes of gzip come to.
    allowedBytes: () => 32 << 20,
    run: async (input) => {
      // Other programs are not what is tried here, and cost a process each.
      if (input.length >= 32 && [2, 3, 4, 5].includes(input[28]! | input[31]!)) return 'by a program';
      let memory: MemoryFile | undefined;
      try {
        const machine = await importSaveImage({
          format: 'libvirt',
          open: () => pieces(input),
          place: (layout) => (memory = new MemoryFile(layout, path)),
        });
        must(memory !== undefined, 'an import has memory');
        memory.checkFilled();
        must(isSaveImage(input), 'what is imported begins as a save image');
        must(machine.identity.name !== '' && machine.identity.uuid !== '', 'a domain has a name and a uuid');
        must(deviceSections(machine.deviceState).length > 0, 'device state comes out as a blob');
        return `regions ${memory.layout.regions.length} ${machine.runState ?? ''}`;
      } finally {
        memory?.close();
        rmSync(path, { force: true });
      }
    },
  };
};
