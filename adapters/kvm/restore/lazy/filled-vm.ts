/** What a page server is told of the QEMU that it fills, besides the process: the adapter's part of its order. */

import { CheckpointError } from '../../../../src/errors.js';
import type { JsonObject } from '../../../../src/types.js';

export interface FilledVm {
  /** Socket of the monitor that is parked. */
  readonly qmpPath: string;
  /** Of our end of the parked connection. */
  readonly monitorInode: number;
}

export function filledVmArgs({ qmpPath, monitorInode }: FilledVm): JsonObject {
  return { qmpPath, monitorInode };
}

/** @throws RESTORE_FAILED when a note was written by another version */
export function readFilledVm({ qmpPath, monitorInode }: JsonObject): FilledVm {
  if (typeof qmpPath === 'string' && typeof monitorInode === 'number') return { qmpPath, monitorInode };
  throw new CheckpointError(
    'RESTORE_FAILED',
    'the note of the VM that is filled does not say how to reach it',
  );
}
