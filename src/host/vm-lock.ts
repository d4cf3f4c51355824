/**
 * Lets one Cairn at a time work on a running VM of this host. Two of them would clear each other's dirty
 * bits.
 *
 * The lock is a Unix socket in the abstract namespace (unix(7)), named after the running VM: the kernel gives
 * a name to one socket only and takes it back when its process ends, however that ends. No folder is
 * involved, so that two users, or two runtime folders, exclude each other too. Whoever connects is told the
 * owner's process id.
 */

import { connect, createServer, type Server } from 'node:net';

import { CheckpointError, systemErrorCode } from '../errors.js';
import type { VmIdentity } from '../hypervisor/vm.js';
import { fileNameOf } from './runtime-file.js';

/** An owner that is busy encoding may answer late; it is asked for the sake of the message only. */
const ANSWER_LIMIT_MS = 1000;

export class VmLock {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** @throws VM_LOCKED naming the process that has it */
  static async take(identity: VmIdentity): Promise<VmLock> {
    const name = lockName(identity);
    const server = createServer((client) => {
      client.on('error', () => undefined);
      client.end(`${process.pid}\n`);
    });
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen(name, resolve);
      });
    } catch (error) {
      if (systemErrorCode(error) !== 'EADDRINUSE') throw error;
      const owner = await ownerOf(name);
      throw new CheckpointError(
        'VM_LOCKED',
        `${owner === undefined ? 'another process' : `process ${owner}`} is already taking checkpoints of this VM`,
        {
          hint: 'wait for it, or stop it (SIGTERM ends a watcher cleanly)',
          retryable: true,
          ...(owner === undefined ? {} : { detail: { pid: owner } }),
        },
      );
    }
    // Holding the lock is no reason to stay alive.
    server.unref();
    return new VmLock(server);
  }

  release(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
    });
  }
}

function lockName(identity: VmIdentity): string {
  return `\0cairn-vm-${fileNameOf(identity)}`;
}

/** Undefined when it does not say. */
function ownerOf(name: string): Promise<number | undefined> {
  return new Promise((resolve) => {
    const socket = connect(name);
    let text = '';
    const done = (): void => {
      socket.destroy();
      const pid = Number.parseInt(text, 10);
      resolve(Number.isSafeInteger(pid) ? pid : undefined);
    };
    socket.setTimeout(ANSWER_LIMIT_MS, done);
    socket.setEncoding('latin1');
    socket.on('data', (chunk: string) => (text += chunk));
    socket.once('end', done);
    socket.once('error', done);
  });
}
