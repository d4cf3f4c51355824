/** A proxy for TCP that cuts connections, at any byte of either direction, and lets bytes wait. */

import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

import { seeded } from './seeded.js';

/** What a connection may carry until it is cut. */
const MOST_BYTES = 200_000;
const MOST_WAIT_MS = 30;

export class UnreliableProxy {
  /** Out of so many connections one is cut; 0 for none. */
  cutOneIn = 0;
  cuts = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(targetPort: number, random: (bound: number) => number) {
    this.#server = createServer((client) => {
      const store = connect(targetPort, '127.0.0.1');
      const isCut = this.cutOneIn > 0 && random(this.cutOneIn) === 0;
      let left = isCut ? random(MOST_BYTES) : Infinity;
      const end = (): void => {
        client.resetAndDestroy();
        store.resetAndDestroy();
      };
      for (const [from, to] of [
        [client, store],
        [store, client],
      ] as const) {
        this.#sockets.add(from);
        from.on('error', end).on('close', () => {
          this.#sockets.delete(from);
          end();
        });
        // Bytes of one direction keep their order, as TCP has it.
        let before = Promise.resolve();
        from.on('data', (bytes: Buffer) => {
          const passed = bytes.subarray(0, Math.min(bytes.length, left));
          left -= passed.length;
          const isOver = isCut && left <= 0;
          const pass = (): void => {
            to.write(passed);
            if (!isOver) return;
            this.cuts++;
            end();
          };
          if (isCut) before = before.then(() => delay(random(MOST_WAIT_MS))).then(pass);
          else pass();
        });
      }
    });
  }

  static async start(endpoint: string, seed: number): Promise<UnreliableProxy> {
    const proxy = new UnreliableProxy(Number(new URL(endpoint).port), seeded(seed));
    await new Promise<void>((resolve) => proxy.#server.listen(0, '127.0.0.1', resolve));
    return proxy;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
