/**
 * The few calls of the C library and the kernel that Node.js does not offer, through koffi. Loaded on first
 * use, so that commands that touch no VM never load it.
 *
 * SAFETY: every call here takes raw addresses. A caller passes memory that it keeps alive for the length of
 * the call (all calls are synchronous), and lengths that lie inside it. Structures are built by the callers
 * in typed arrays; layouts are those of x86-64 Linux, which `libc()` checks.
 */

import koffi from 'koffi';

import { CheckpointError, systemErrorName } from '../errors.js';

/** Result of a raw call: the value, or -1 and the error's number. */
export interface CallResult {
  readonly value: number;
  /** 0 unless the call failed. */
  readonly errno: number;
}

export interface Libc {
  /**
   * process_vm_readv(2). `local` and `remote` are arrays of struct iovec { u64 base, u64 length }.
   * @returns bytes copied; fewer than asked when a page in the middle cannot be read
   */
  processVmReadv(
    pid: number,
    local: BigUint64Array,
    localCount: number,
    remote: BigUint64Array,
    remoteCount: number,
  ): CallResult;
  /** process_vm_writev(2), with arguments as above. @returns bytes written; fewer when a page cannot be written */
  processVmWritev(
    pid: number,
    local: BigUint64Array,
    localCount: number,
    remote: BigUint64Array,
    remoteCount: number,
  ): CallResult;
  ioctl(descriptor: number, request: bigint, argument: ArrayBufferView): CallResult;
  /** waitpid(2); `status` receives one i32. */
  waitpid(pid: number, status: Int32Array, options: number): CallResult;
  /** Any system call by number; arguments not given are 0. */
  syscall(number: number, ...args: readonly (number | bigint)[]): CallResult;
  /**
   * The same on another thread, for a call that may take long. It cannot be called off.
   * SAFETY: the caller keeps descriptors open and memory alive until the promise is settled.
   */
  syscallLater(number: number, ...args: readonly (number | bigint)[]): Promise<CallResult>;
  getsockopt(descriptor: number, level: number, option: number, into: Uint8Array): CallResult;
  /** sendmsg(2) with the msghdr given as bytes. */
  sendmsg(descriptor: number, header: Uint8Array, flags: number): CallResult;
  lseek(descriptor: number, offset: number, whence: number): CallResult;
  /**
   * malloc_trim(3): what was freed goes back to the kernel. Does nothing where the C library has no such
   * call.
   */
  mallocTrim(): void;
}

/**
 * Address of the first byte of a view, in WebAssembly memory too. Valid until the memory grows or the view is
 * collected.
 */
export function addressOf(view: ArrayBufferView): bigint {
  return koffi.address(view);
}

/** ESRCH, EPERM and so on. */
export function errnoName(errno: number): string {
  return errno > 0 ? systemErrorName(errno) : 'OK';
}

let loaded: Libc | undefined;

/** Whether `libc()` knows this machine. */
export function hasLibc(): boolean {
  return process.platform === 'linux' && process.arch === 'x64';
}

/** @throws VM_UNSUPPORTED on anything but x86-64 Linux, FFI_FAILED when the C library cannot be bound */
export function libc(): Libc {
  loaded ??= load();
  return loaded;
}

function load(): Libc {
  if (!hasLibc()) {
    throw new CheckpointError(
      'VM_UNSUPPORTED',
      `no access to virtual machines on ${process.platform}-${process.arch}`,
      {
        hint: 'Cairn reads and tracks the memory of VMs on x86-64 Linux',
      },
    );
  }
  try {
    return bind();
  } catch (cause) {
    throw new CheckpointError('FFI_FAILED', 'cannot bind the C library', { cause });
  }
}

type RawCall = (...args: readonly unknown[]) => number | bigint;
/** The last argument is called with the result, or with an error of koffi's own. */
interface AsyncRawCall extends RawCall {
  async(...args: readonly unknown[]): void;
}

function bind(): Libc {
  const library = koffi.load(null);
  // On x86-64 a variadic function gets its integer arguments as any other function does, so fixed prototypes
  // are right.
  const readv = library.func(
    'long process_vm_readv(int pid, void *local, unsigned long localCount, void *remote, unsigned long remoteCount, unsigned long flags)',
  ) as RawCall;
  const writev = library.func(
    'long process_vm_writev(int pid, void *local, unsigned long localCount, void *remote, unsigned long remoteCount, unsigned long flags)',
  ) as RawCall;
  const ioctl = library.func('int ioctl(int fd, unsigned long request, void *argument)') as RawCall;
  const waitpid = library.func('int waitpid(int pid, void *status, int options)') as RawCall;
  const getsockopt = library.func(
    'int getsockopt(int fd, int level, int option, void *value, void *length)',
  ) as RawCall;
  const sendmsg = library.func('long sendmsg(int fd, void *header, int flags)') as RawCall;
  const lseek = library.func('int64_t lseek(int fd, int64_t offset, int whence)') as RawCall;
  const syscall = library.func(
    'int64_t syscall(long number, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f)',
  ) as AsyncRawCall;
  const trim = optional(() => library.func('int malloc_trim(size_t pad)') as RawCall);
  return {
    processVmReadv: (pid, local, localCount, remote, remoteCount) =>
      result(readv(pid, local, localCount, remote, remoteCount, 0)),
    processVmWritev: (pid, local, localCount, remote, remoteCount) =>
      result(writev(pid, local, localCount, remote, remoteCount, 0)),
    ioctl: (descriptor, request, argument) => result(ioctl(descriptor, request, argument)),
    waitpid: (pid, status, options) => result(waitpid(pid, status, options)),
    syscall: (number, a = 0, b = 0, c = 0, d = 0, e = 0, f = 0) => result(syscall(number, a, b, c, d, e, f)),
    syscallLater: (number, a = 0, b = 0, c = 0, d = 0, e = 0, f = 0) =>
      new Promise((resolve, reject) =>
        syscall.async(number, a, b, c, d, e, f, (error: Error | null, value: number | bigint) =>
          error ? reject(error) : resolve(result(value)),
        ),
      ),
    getsockopt: (descriptor, level, option, into) =>
      result(getsockopt(descriptor, level, option, into, Uint32Array.of(into.length))),
    sendmsg: (descriptor, header, flags) => result(sendmsg(descriptor, header, flags)),
    lseek: (descriptor, offset, whence) => result(lseek(descriptor, offset, whence)),
    mallocTrim: () => void trim?.(0),
  };
}

/** A call that only some C libraries have. */
function optional(bindCall: () => RawCall): RawCall | undefined {
  try {
    return bindCall();
  } catch {
    return undefined;
  }
}

/**
 * koffi keeps errno of the last call of this thread: it is right only directly after it, or in the callback
 * of an asynchronous one.
 */
function result(raw: number | bigint): CallResult {
  const value = Number(raw);
  return value === -1 ? { value, errno: koffi.errno() } : { value, errno: 0 };
}
