/** A VM whose memory is still being filled, as whoever restores it sees that. */

import { CheckpointError } from '../../errors.js';
import type { PageServer } from '../../hypervisor/page-server.js';
import { PAGE_SIZE_BYTES } from '../../types.js';

export interface FillingOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}

export class Filling {
  readonly #server: PageServer;

  constructor(server: PageServer) {
    this.#server = server;
  }

  /** Process that looks after the page server. */
  get pid(): number {
    return this.#server.pid;
  }

  get totalBytes(): number {
    return this.#server.totalPages * PAGE_SIZE_BYTES;
  }

  /** The page server goes on by itself. */
  letGo(): void {
    this.#server.letGo();
  }

  /**
   * Until the VM has all of its memory.
   * @throws REPO_DAMAGED, CHECKPOINT_GONE, STORAGE_IO for a page that cannot be read: the VM goes on until it needs it;
   *   RESTORE_FAILED and VM_GONE when the page server has ended; INTERRUPTED. In all but the last two the page server
   *   goes on, and so it does when this was interrupted
   */
  async followed({ signal, onProgress }: FillingOptions): Promise<void> {
    const totalBytes = this.totalBytes;
    let abort: () => void = () => undefined;
    const aborted = new Promise<'aborted'>((resolve) => {
      abort = () => resolve('aborted');
      signal?.addEventListener('abort', abort, { once: true });
      if (signal?.aborted === true) abort();
    });
    try {
      for (;;) {
        const event = await Promise.race([this.#server.next(), aborted]);
        if (event === 'aborted') {
          throw new CheckpointError('INTERRUPTED', 'the VM is up, and its page server goes on filling it');
        }
        if (event.event === 'progress') onProgress?.(event.donePages * PAGE_SIZE_BYTES, totalBytes);
        if (event.event === 'damaged') throw stoppedBy(CheckpointError.fromJSON(event.error), event.pages);
        if (event.event === 'failed') throw CheckpointError.fromJSON(event.error);
        if (event.event === 'done') return;
      }
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }
}

/** The same error, with what it means for the VM. */
function stoppedBy(error: CheckpointError, pages: number): CheckpointError {
  return new CheckpointError(
    error.code,
    `${error.message}; the VM waits when it needs one of ${pages} pages`,
    {
      hint: 'put the repository right, from a copy of it; then cairn restore --resume ADDRESS goes on',
      detail: error.detail,
    },
  );
}
