/**
 * The part of libvirt's C API that the adapter uses, through koffi. Loaded on first use of a libvirt address.
 *
 * Pointers travel as bigint, 0n or null for none. Calls that wait for the daemon are made on a thread of
 * koffi's (`asyncCall`), so that the event loop stays free. libvirt keeps its last error for each thread,
 * where it cannot be fetched after such a call; the copy it keeps in the connection can, as long as calls on
 * a connection come one by one.
 *
 * SAFETY: callers hold buffers that they pass until the call is done, and free each object once.
 * Source: libvirt-host.h, libvirt-domain.h, libvirt-qemu.h, virterror.h.
 */

import koffi from 'koffi';

import { CheckpointError, describeError } from '../../../src/errors.js';

/** An address in this process; null or 0n for none. */
export type Pointer = bigint | null;

type Done<Result> = (error: unknown, result: Result) => void;

export interface NativeCall<Args extends readonly unknown[], Result> {
  (...args: Args): Result;
  async(...args: [...Args, Done<Result>]): void;
}

export interface Libvirt {
  readonly connectOpen: NativeCall<[uri: string | null], Pointer>;
  readonly connectClose: NativeCall<[connection: Pointer], number>;
  readonly connectGetUri: NativeCall<[connection: Pointer], Pointer>;
  readonly connectLastError: NativeCall<[connection: Pointer], Pointer>;
  readonly lastError: NativeCall<[], Pointer>;
  readonly lookupByName: NativeCall<[connection: Pointer, name: string], Pointer>;
  readonly lookupByUuid: NativeCall<[connection: Pointer, uuid: string], Pointer>;
  readonly lookupById: NativeCall<[connection: Pointer, id: number], Pointer>;
  readonly domainFree: NativeCall<[domain: Pointer], number>;
  readonly domainGetName: NativeCall<[domain: Pointer], string | null>;
  /** `into` takes 37 bytes. */
  readonly domainGetUuid: NativeCall<[domain: Pointer, into: Uint8Array], number>;
  /** `into` takes state and reason. */
  readonly domainGetState: NativeCall<
    [domain: Pointer, state: Int32Array, reason: Int32Array, flags: number],
    number
  >;
  /** @returns a string for `free` */
  readonly domainGetXml: NativeCall<[domain: Pointer, flags: number], Pointer>;
  readonly domainGetJobStats: NativeCall<
    [
      domain: Pointer,
      type: Int32Array,
      parameters: BigUint64Array,
      parameterCount: Int32Array,
      flags: number,
    ],
    number
  >;
  readonly typedParamsGetInt: NativeCall<
    [parameters: Pointer, count: number, name: string, into: Int32Array],
    number
  >;
  readonly typedParamsFree: NativeCall<[parameters: Pointer, count: number], void>;
  readonly domainIsPersistent: NativeCall<[domain: Pointer], number>;
  readonly domainDefineXml: NativeCall<[connection: Pointer, xml: string], Pointer>;
  readonly snapshotCreateXml: NativeCall<[domain: Pointer, xml: string, flags: number], Pointer>;
  readonly snapshotFree: NativeCall<[snapshot: Pointer], number>;
  readonly domainSuspend: NativeCall<[domain: Pointer], number>;
  readonly domainResume: NativeCall<[domain: Pointer], number>;
  readonly domainRestore: NativeCall<
    [connection: Pointer, path: string, xml: string | null, flags: number],
    number
  >;
  /** `reply` receives the address of a string for `free`. */
  readonly qemuMonitorCommand: NativeCall<
    [domain: Pointer, command: string, reply: BigUint64Array, flags: number],
    number
  >;
  /** Sends a command as above, with descriptors; none come back. */
  readonly qemuMonitorCommandWithFiles: NativeCall<
    [
      domain: Pointer,
      command: string,
      inCount: number,
      inFiles: Int32Array,
      outCount: null,
      outFiles: null,
      reply: BigUint64Array,
      flags: number,
    ],
    number
  >;
  /** @returns a string for `free` */
  readonly qemuAgentCommand: NativeCall<
    [domain: Pointer, command: string, timeoutSeconds: number, flags: number],
    Pointer
  >;
  readonly free: NativeCall<[address: Pointer], void>;
}

let loaded: Libvirt | undefined;

/** @throws VM_UNSUPPORTED when libvirt's client libraries are not installed */
export function libvirt(): Libvirt {
  loaded ??= load();
  return loaded;
}

/** Runs a call on another thread. */
export function asyncCall<Args extends readonly unknown[], Result>(
  call: NativeCall<Args, Result>,
  ...args: Args
): Promise<Result> {
  return new Promise((resolve, reject) => {
    call.async(...args, (error, result) => {
      if (error === null || error === undefined) resolve(result);
      else reject(new Error(describeError(error)));
    });
  });
}

export function isNull(pointer: Pointer): pointer is null | 0n {
  return pointer === null || pointer === 0n;
}

/** The text at `address`, which stays whose it was. */
export function textAt(address: Pointer): string {
  if (isNull(address)) return '';
  const text: unknown = koffi.decode(address, 'char', -1);
  return typeof text === 'string' ? text : '';
}

/** The text at `address`, which is freed. */
export function takeText(address: Pointer): string {
  const text = textAt(address);
  libvirt().free(address);
  return text;
}

/** `struct _virError { int code; int domain; char *message; ... }` */
export function errorAt(address: Pointer): { readonly code: number; readonly message: string } | undefined {
  if (isNull(address)) return undefined;
  const message = koffi.decode(address, 8, 'char *') as string | null;
  return { code: koffi.decode(address, 0, 'int') as number, message: message ?? '' };
}

function load(): Libvirt {
  try {
    return bind();
  } catch (cause) {
    throw new CheckpointError('VM_UNSUPPORTED', 'libvirt is not installed on this host', {
      cause,
      hint: 'install the package libvirt0 (Debian, Ubuntu) or libvirt-libs (Fedora, RHEL)',
    });
  }
}

function bind(): Libvirt {
  const main = koffi.load('libvirt.so.0');
  const qemu = koffi.load('libvirt-qemu.so.0');
  const libc = koffi.load(null);
  // Without a handler libvirt prints every error on stderr. Any function that ignores its arguments will do
  // as a handler; a callback into JavaScript from libvirt's threads would not.
  main.func('void virSetErrorFunc(void *userData, void *handler)')(null, libc.symbol('getpid'));
  return {
    connectOpen: main.func('void *virConnectOpen(const char *uri)'),
    connectClose: main.func('int virConnectClose(void *conn)'),
    connectGetUri: main.func('void *virConnectGetURI(void *conn)'),
    connectLastError: main.func('void *virConnGetLastError(void *conn)'),
    lastError: main.func('void *virGetLastError()'),
    lookupByName: main.func('void *virDomainLookupByName(void *conn, const char *name)'),
    lookupByUuid: main.func('void *virDomainLookupByUUIDString(void *conn, const char *uuid)'),
    lookupById: main.func('void *virDomainLookupByID(void *conn, int id)'),
    domainFree: main.func('int virDomainFree(void *domain)'),
    domainGetName: main.func('const char *virDomainGetName(void *domain)'),
    domainGetUuid: main.func('int virDomainGetUUIDString(void *domain, void *buf)'),
    domainGetState: main.func(
      'int virDomainGetState(void *domain, void *state, void *reason, unsigned int flags)',
    ),
    domainGetXml: main.func('void *virDomainGetXMLDesc(void *domain, unsigned int flags)'),
    domainGetJobStats: main.func(
      'int virDomainGetJobStats(void *domain, void *type, void *params, void *nparams, unsigned int flags)',
    ),
    typedParamsGetInt: main.func(
      'int virTypedParamsGetInt(void *params, int nparams, const char *name, void *value)',
    ),
    typedParamsFree: main.func('void virTypedParamsFree(void *params, int nparams)'),
    domainIsPersistent: main.func('int virDomainIsPersistent(void *domain)'),
    domainDefineXml: main.func('void *virDomainDefineXML(void *conn, const char *xml)'),
    snapshotCreateXml: main.func(
      'void *virDomainSnapshotCreateXML(void *domain, const char *xml, unsigned int flags)',
    ),
    snapshotFree: main.func('int virDomainSnapshotFree(void *snapshot)'),
    domainSuspend: main.func('int virDomainSuspend(void *domain)'),
    domainResume: main.func('int virDomainResume(void *domain)'),
    domainRestore: main.func(
      'int virDomainRestoreFlags(void *conn, const char *from, const char *dxml, unsigned int flags)',
    ),
    qemuMonitorCommand: qemu.func(
      'int virDomainQemuMonitorCommand(void *domain, const char *cmd, void *result, unsigned int flags)',
    ),
    qemuMonitorCommandWithFiles: qemu.func(
      'int virDomainQemuMonitorCommandWithFiles(void *domain, const char *cmd, unsigned int ninfiles, void *infiles, void *noutfiles, void *outfiles, void *result, unsigned int flags)',
    ),
    qemuAgentCommand: qemu.func(
      'void *virDomainQemuAgentCommand(void *domain, const char *cmd, int timeout, unsigned int flags)',
    ),
    free: libc.func('void free(void *address)'),
  };
}
