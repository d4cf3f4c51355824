/** A page server that is started before the QEMU which it fills, since both take their time. */

import { closeSync } from 'node:fs';

import { openSocketPair } from '../../../../src/ffi/socket-pair.js';
import type { PageServer, StartPageServer } from '../../../../src/hypervisor/page-server.js';

export class ServerAhead {
  readonly server: Promise<PageServer>;
  /** For QEMU. */
  readonly theirs: number;
  #isOpen = true;

  /** @throws FFI_FAILED */
  constructor(startPageServer: StartPageServer, bytesPerSecond: number) {
    const { ours, theirs } = openSocketPair(0);
    this.theirs = theirs;
    this.server = startPageServer({
      modulePath: new URL('./serve-pages.js', import.meta.url).href,
      stream: ours,
      bytesPerSecond,
    })
      // A page server that ends has to be the last one that has it.
      .finally(() => closeSync(ours));
    // Met when it is waited for, which another failure may prevent.
    this.server.catch(() => undefined);
  }

  /** QEMU has it: it notices a page server that ends only when nobody else has it. */
  closeTheirs(): void {
    if (this.#isOpen) closeSync(this.theirs);
    this.#isOpen = false;
  }

  /** Ends the page server, if it was ever there, before the VM runs. Never rejects. */
  async drop(): Promise<void> {
    this.closeTheirs();
    await this.server.then(
      (server) => server.end(),
      () => undefined,
    );
  }
}
