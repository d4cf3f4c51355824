/**
 * A connection to a libvirt daemon of this host. Calls on it come one after the other, each on another
 * thread.
 */

import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError } from '../../../src/errors.js';
import { asyncCall, errorAt, isNull, libvirt, textAt, type NativeCall, type Pointer } from './native.js';
import { describeFailure, libvirtError } from './libvirt-error.js';

/** A call waits for QEMU, which may be stuck on a disk. */
const CLOSE_LIMIT_MS = 2000;

export class LibvirtConnection {
  readonly uri: string;
  readonly #pointer: Pointer;
  #last: Promise<unknown> = Promise.resolve();
  readonly #domains: Pointer[] = [];
  #isClosed = false;

  private constructor(pointer: Pointer) {
    this.#pointer = pointer;
    const uri = libvirt().connectGetUri(pointer);
    this.uri = textAt(uri);
    libvirt().free(uri);
  }

  /** @throws VM_UNSUPPORTED without libvirt, VM_UNREACHABLE without its daemon, VM_PERMISSION */
  static async open(uri: string): Promise<LibvirtConnection> {
    const { connectOpen, lastError } = libvirt();
    let pointer = await asyncCall(connectOpen, uri);
    // The reason stayed in the other thread; asked here it fails again at once, and says why.
    if (isNull(pointer)) pointer = connectOpen(uri);
    if (!isNull(pointer)) return new LibvirtConnection(pointer);
    const { code, message } = describeFailure(errorAt(lastError()));
    const isDenied = code === 'VM_PERMISSION';
    throw new CheckpointError(isDenied ? code : 'VM_UNREACHABLE', `no connection to ${uri}: ${message}`, {
      hint: isDenied
        ? 'run as root or as a member of the group libvirt'
        : 'is the daemon there (libvirtd or virtqemud)? package libvirt-daemon-system on Debian, libvirt-daemon-driver-qemu on Fedora',
      retryable: true,
    });
  }

  /**
   * Makes a call whose first argument is this connection.
   * @throws as `run`
   */
  withConnection<Args extends readonly unknown[], Result extends number | Pointer>(
    step: string,
    call: NativeCall<[connection: Pointer, ...Args], Result>,
    ...args: Args
  ): Promise<Result> {
    return this.run<[connection: Pointer, ...Args], Result>(step, call, this.#pointer, ...args);
  }

  /**
   * Makes a call that fails with -1 or a null pointer.
   * @param step of what an error says it failed
   * @throws VM_GONE, VM_UNREACHABLE, VM_PERMISSION, VM_STATE, VM_UNSUPPORTED
   */
  run<Args extends readonly unknown[], Result extends number | Pointer>(
    step: string,
    call: NativeCall<Args, Result>,
    ...args: Args
  ): Promise<Result> {
    const result = this.#last.then(async () => {
      if (this.#isClosed) throw new CheckpointError('VM_GONE', `${step}: the connection was closed`);
      const value = await asyncCall(call, ...args);
      const failed = typeof value === 'number' ? value < 0 : isNull(value);
      // Nothing runs between the call's end and this line, so the connection's last error is the call's.
      if (failed) throw libvirtError(step, errorAt(libvirt().connectLastError(this.#pointer)));
      return value;
    });
    this.#last = result.catch(() => undefined);
    return result;
  }

  /**
   * Waits for the call under way. One that does not come back keeps its connection until this process ends.
   */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    const isIdle = await Promise.race([
      this.#last.then(() => true),
      delay(CLOSE_LIMIT_MS, false, { ref: false }),
    ]);
    if (!isIdle) return;
    for (const domain of this.#domains) libvirt().domainFree(domain);
    libvirt().connectClose(this.#pointer);
  }

  /** Has a domain freed together with the connection. */
  adopt(domain: Pointer): void {
    this.#domains.push(domain);
  }
}
