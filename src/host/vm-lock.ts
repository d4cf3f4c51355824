/**
 * Lets one Cairn at a time work on a running VM of this host. Two of them would clear each other's dirty
 * bits. It has two parts, and whoever may have the first decides by that:
 *
 *     gate     for root and the user that runs the VM, whom it keeps apart (`vm-gate.ts`)
 *     socket   a Unix socket in the abstract namespace (unix(7)), named after the running VM, for everybody
 *
 * The kernel gives a name to one socket only and takes it back when its process ends. No folder is involved,
 * so users without the right to trace the VM, who have its monitor alone, exclude each other too, and so do
 * processes that do not share a /proc. But everybody may take any name: a socket that is held by a user who
 * may not work on the VM does not keep out whoever has the gate. Who holds it the kernel says, not its owner.
 */

import { connect, createServer, type Server } from 'node:net';

import { CheckpointError, systemErrorCode } from '../errors.js';
import { peerCredentials, type PeerCredentials } from '../ffi/peer-credentials.js';
import type { Vm } from '../hypervisor/vm.js';
import { commandLineOf } from './process-identity.js';
import { fileNameOf } from './runtime-file.js';
import { descriptorOf } from './socket-descriptor.js';
import { leaveGate, takeGate, type Gate } from './vm-gate.js';

export type LockedVm = Pick<Vm, 'identity' | 'process'>;

export class VmLock {
  readonly #gate: Gate;
  readonly #server: Server | undefined;

  private constructor(
    gate: Gate,
    server: Server | undefined,
    /** What the operator should know about it; empty when there is nothing. */
    readonly notice: string,
  ) {
    this.#gate = gate;
    this.#server = server;
  }

  /**
   * @param runtimeDir for a VM that is no process of this host
   * @throws VM_LOCKED naming the process that has it, VM_GONE
   */
  static async take(vm: LockedVm, runtimeDir: string): Promise<VmLock> {
    const gate = takeGate(vm, runtimeDir);
    const name = socketName(vm);
    if (gate.state === 'taken') throw lockedBy(gate.pid ?? (await holderOf(name))?.pid);
    try {
      const server = await listen(name);
      if (server !== undefined) return new VmLock(gate, server, '');
      const holder = await holderOf(name);
      if (gate.state === 'held' && !(holder !== undefined && gate.userIds.includes(holder.uid)))
        return new VmLock(gate, undefined, squatted(holder));
      throw lockedBy(holder?.pid);
    } catch (error) {
      leaveGate(gate);
      throw error;
    }
  }

  async release(): Promise<void> {
    await new Promise<void>((resolve) => {
      if (this.#server === undefined) resolve();
      else this.#server.close(() => resolve());
    });
    leaveGate(this.#gate);
  }
}

/** One name, whatever the address is by which the VM was reached. */
function socketName({ identity, process: ofVm }: LockedVm): string {
  const instance = ofVm === undefined ? fileNameOf(identity) : `process-${ofVm.pid}_${ofVm.startTime}`;
  return `\0cairn-vm-${instance}`;
}

/** @returns undefined when the name is taken */
async function listen(name: string): Promise<Server | undefined> {
  // Whoever connects wants to know whose socket it is, and the kernel has told that by then. Connections that
  // stay would use up the descriptors of this process.
  const server = createServer((client) => {
    client.on('error', () => undefined);
    client.destroy();
  });
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(name, resolve);
    });
  } catch (error) {
    if (systemErrorCode(error) === 'EADDRINUSE') return undefined;
    throw error;
  }
  // Holding the lock is no reason to stay alive.
  server.unref();
  return server;
}

/** Undefined when it has gone meanwhile, or takes no more connections. */
function holderOf(name: string): Promise<PeerCredentials | undefined> {
  return new Promise((resolve) => {
    const socket = connect(name);
    socket.once('error', () => resolve(undefined));
    socket.once('connect', () => {
      const asked = Promise.resolve().then(() => peerCredentials(descriptorOf(socket)));
      resolve(asked.finally(() => socket.destroy()));
    });
  });
}

function lockedBy(pid: number | undefined): CheckpointError {
  const isKnown = pid !== undefined && pid > 0;
  const command = isKnown ? commandLineOf(pid) : '';
  const who = isKnown ? `process ${pid}${command === '' ? '' : ` (${command})`}` : 'another process';
  return new CheckpointError('VM_LOCKED', `${who} is already taking checkpoints of this VM`, {
    hint: 'wait for it, or stop it (SIGTERM ends a watcher cleanly)',
    retryable: true,
    ...(isKnown ? { detail: { pid } } : {}),
  });
}

function squatted(holder: PeerCredentials | undefined): string {
  const who =
    holder === undefined ? 'a process that does not answer' : `process ${holder.pid} of user ${holder.uid}`;
  return `${who} holds the name of this VM's lock and may not work on the VM: Cairn goes on without it`;
}
