/**
 * Xen's own libraries through koffi: libxenctrl and libxenguest of the running hypervisor's release, and the
 * stable libxenforeignmemory and libxenstore. Each thread that needs them binds for itself.
 *
 * SAFETY: every call takes buffers that the caller keeps alive for its length, and whose sizes the callers in
 * this folder derive from the tables in `versions.ts`. Mapped guest memory is copied out and unmapped before
 * a call returns: a view of it would dangle. koffi.errno() is read directly after the call that may have set
 * it.
 */

import koffi from 'koffi';

import { CheckpointError } from '../../../src/errors.js';
import { errnoName, type CallResult } from '../../../src/ffi/libc.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { SHORT_BITMAP, type LibraryCalls } from './library.js';
import { libraryNames, versionTable, type XenVersion } from './versions.js';

type Raw = (...args: readonly unknown[]) => unknown;
type Pointer = bigint;

const PROT_READ = 1;
/** XENMEM_resource_grant_table (memory.h). */
const RESOURCE_GRANT_TABLE = 1;
/** struct gnttab_query_size: u16 dom, u32 nr_frames, u32 max_nr_frames, s16 status (grant_table.h). */
const QUERY_SIZE = { sizeBytes: 16, frames: 4, status: 12 } as const;
const EINVAL = 22;

/**
 * @throws VM_UNSUPPORTED for an unknown release or missing libraries, VM_PERMISSION when the hypervisor turns
 *   us away
 */
export function bindXen(version: XenVersion): LibraryCalls {
  return new BoundXen(version);
}

class BoundXen implements LibraryCalls {
  readonly version: XenVersion;
  readonly table;
  readonly #calls: ReturnType<typeof declareCalls>;
  /** Undefined once they are closed: the library would read freed memory. */
  #handles: { readonly control: Pointer; readonly memory: Pointer } | undefined;
  #store: Pointer | null = null;
  /** Buffer for the last size that was asked for: the bitmap of a domain has the same size each time. */
  #bitmap: { readonly struct: Uint8Array; readonly address: Pointer; readonly pages: number } | undefined;

  constructor(version: XenVersion) {
    this.version = version;
    this.table = versionTable(version);
    this.#calls = load(version);
    this.#handles = {
      control: this.#open('xc_interface_open', this.#calls.xcOpen(null, null, 0), koffi.errno()),
      memory: this.#open('xenforeignmemory_open', this.#calls.memoryOpen(null, 0), koffi.errno()),
    };
  }

  get #control(): Pointer {
    return this.#mustBeOpen().control;
  }

  get #memory(): Pointer {
    return this.#mustBeOpen().memory;
  }

  domainInfo(first: number, max: number, into: Uint8Array): CallResult {
    return result(this.#calls.xcInfo(this.#control, first, max, into));
  }

  frameCount(domid: number, into: BigUint64Array): CallResult {
    return result(this.#calls.xcFrames(this.#control, domid, into));
  }

  shadowControl(domid: number, operation: number): CallResult {
    return result(this.#calls.xcShadow(this.#control, domid, operation, null, 0));
  }

  logDirty(
    domid: number,
    operation: number,
    frameCount: number,
    mode: number,
    into: Uint8Array,
    stats: Uint32Array,
  ): CallResult {
    const sizeBytes = Math.ceil(frameCount / 8);
    if (into.length < sizeBytes) throw new RangeError(`${into.length} bytes for ${frameCount} bits`);
    const { struct, address } = this.#hypercallBuffer(Math.ceil(sizeBytes / PAGE_SIZE_BYTES));
    const done = result(
      this.#calls.xcLogDirty(this.#control, domid, operation, struct, frameCount, mode, stats),
    );
    if (done.value < 0) return done;
    if (done.value !== frameCount) return { value: SHORT_BITMAP, errno: 0 };
    this.#calls.copy(into, address, sizeBytes);
    return done;
  }

  pageTypes(domid: number, count: number, frames: BigUint64Array): CallResult {
    return result(this.#calls.xcTypes(this.#control, domid, count, frames));
  }

  hvmContext(domid: number, into: Uint8Array | null): CallResult {
    return result(this.#calls.xcContext(this.#control, domid, into, into?.length ?? 0));
  }

  hvmParam(domid: number, index: number, into: BigUint64Array): CallResult {
    return result(this.#calls.xcParam(this.#control, domid, index, into));
  }

  grantVersion(domid: number): CallResult {
    return result(this.#calls.xcGrantVersion(this.#control, domid));
  }

  grantFrames(domid: number): CallResult {
    const query = new DataView(new ArrayBuffer(QUERY_SIZE.sizeBytes));
    query.setUint16(0, domid, true);
    const done = result(this.#calls.xcGrantSize(this.#control, new Uint8Array(query.buffer)));
    if (done.value < 0) return done;
    if (query.getInt16(QUERY_SIZE.status, true) !== 0) return { value: -1, errno: EINVAL };
    return { value: query.getUint32(QUERY_SIZE.frames, true), errno: 0 };
  }

  readGrants(domid: number, part: number, into: Uint8Array): CallResult {
    const address = new BigUint64Array(1);
    const frames = into.length / PAGE_SIZE_BYTES;
    const resource = this.#calls.memoryResource(
      this.#memory,
      domid,
      RESOURCE_GRANT_TABLE,
      part,
      0,
      frames,
      address,
      PROT_READ,
      0,
    ) as Pointer | null;
    const errno = koffi.errno();
    if (resource === null) return { value: -1, errno };
    try {
      this.#calls.copy(into, address[0]!, into.length);
    } finally {
      this.#calls.memoryRelease(this.#memory, resource);
    }
    return { value: frames, errno: 0 };
  }

  tscInfo(
    domid: number,
    mode: Uint32Array,
    elapsedNs: BigUint64Array,
    khz: Uint32Array,
    incarnation: Uint32Array,
  ): CallResult {
    return result(this.#calls.xcTsc(this.#control, domid, mode, elapsedNs, khz, incarnation));
  }

  cpuPolicySize(leaves: Uint32Array, msrs: Uint32Array): CallResult {
    return result(this.#calls.policySize(this.#control, leaves, msrs));
  }

  cpuPolicy(
    domid: number,
    leaves: Uint8Array,
    leafCount: Uint32Array,
    msrs: Uint8Array,
    msrCount: Uint32Array,
  ): CallResult {
    const policy = this.#calls.policyInit();
    if (policy === null) return { value: -1, errno: koffi.errno() };
    try {
      const got = result(this.#calls.policyDomain(this.#control, domid, policy));
      if (got.value < 0) return got;
      return result(this.#calls.policySerialise(this.#control, policy, leaves, leafCount, msrs, msrCount));
    } finally {
      this.#calls.policyDestroy(policy);
    }
  }

  guestWidth(domid: number, into: Uint32Array): CallResult {
    return result(this.#calls.xcWidth(this.#control, domid, into));
  }

  vcpuContext(domid: number, vcpu: number, into: Uint8Array): CallResult {
    return result(this.#calls.xcVcpu(this.#control, domid, vcpu, into));
  }

  domctl(struct: Uint8Array, buffer?: { readonly addressAt: number; readonly into: Uint8Array }): CallResult {
    if (buffer === undefined) return result(this.#calls.xcDomctl(this.#control, struct));
    const pages = Math.max(1, Math.ceil(buffer.into.length / PAGE_SIZE_BYTES));
    const memory = this.#hypercallBuffer(pages);
    new DataView(struct.buffer, struct.byteOffset).setBigUint64(buffer.addressAt, memory.address, true);
    const done = result(this.#calls.xcDomctl(this.#control, struct));
    if (done.value >= 0) this.#calls.copy(buffer.into, memory.address, buffer.into.length);
    return done;
  }

  shutdown(domid: number, reason: number): CallResult {
    return result(this.#calls.xcShutdown(this.#control, domid, reason));
  }

  resume(domid: number): CallResult {
    return result(this.#calls.xcResume(this.#control, domid, 1));
  }

  readPages(
    domid: number,
    count: number,
    frames: BigUint64Array,
    errors: Int32Array,
    into: Uint8Array,
  ): CallResult {
    const address = this.#calls.memoryMap(
      this.#memory,
      domid,
      PROT_READ,
      count,
      frames,
      errors,
    ) as Pointer | null;
    const errno = koffi.errno();
    if (address === null) return { value: -1, errno };
    try {
      for (let from = 0; from < count;) {
        if (errors[from] !== 0) {
          from++;
          continue;
        }
        let to = from + 1;
        while (to < count && errors[to] === 0) to++;
        const at = from * PAGE_SIZE_BYTES;
        const lengthBytes = (to - from) * PAGE_SIZE_BYTES;
        this.#calls.copy(into.subarray(at, at + lengthBytes), address + BigInt(at), lengthBytes);
        from = to;
      }
    } finally {
      this.#calls.memoryUnmap(this.#memory, address, count);
    }
    return { value: count, errno: 0 };
  }

  storeRead(path: string): Uint8Array | null {
    const length = new Uint32Array(1);
    const address = this.#calls.storeRead(this.#openStore(), 0, path, length) as Pointer | null;
    if (address === null) return null;
    try {
      const bytes = new Uint8Array(length[0]!);
      if (bytes.length > 0) this.#calls.copy(bytes, address, bytes.length);
      return bytes;
    } finally {
      this.#calls.free(address);
    }
  }

  storeWrite(path: string, value: Uint8Array): boolean {
    return this.#calls.storeWrite(this.#openStore(), 0, path, value, value.length) === true;
  }

  storeReplace(path: string, expected: string, value: string): boolean {
    const store = this.#openStore();
    for (;;) {
      const transaction = Number(this.#calls.storeBegin(store));
      if (transaction === 0) return false;
      const length = new Uint32Array(1);
      const address = this.#calls.storeRead(store, transaction, path, length) as Pointer | null;
      const found = Buffer.alloc(length[0]!);
      if (address !== null) {
        if (found.length > 0) this.#calls.copy(found, address, found.length);
        this.#calls.free(address);
      }
      const matches = address !== null && found.toString('latin1') === expected;
      const bytes = Buffer.from(value, 'latin1');
      const written =
        matches && this.#calls.storeWrite(store, transaction, path, bytes, bytes.length) === true;
      const ended = this.#calls.storeEnd(store, transaction, !written) === true;
      const errno = koffi.errno();
      if (!written) return false;
      if (ended) return true;
      // Somebody else wrote to xenstore in between: look again.
      if (errnoName(errno) !== 'EAGAIN') return false;
    }
  }

  storeResume(domid: number): boolean {
    return this.#calls.storeResume(this.#openStore(), domid) === true;
  }

  close(): void {
    if (this.#handles === undefined) return;
    const { control, memory } = this.#handles;
    this.#freeBuffer();
    if (this.#store !== null) this.#calls.storeClose(this.#store);
    this.#store = null;
    this.#handles = undefined;
    this.#calls.memoryClose(memory);
    this.#calls.xcClose(control);
  }

  #mustBeOpen(): { readonly control: Pointer; readonly memory: Pointer } {
    if (this.#handles === undefined)
      throw new CheckpointError('VM_GONE', 'the connection to the hypervisor is closed');
    return this.#handles;
  }

  #open(what: string, handle: unknown, errno: number): Pointer {
    if (handle !== null) return handle as Pointer;
    const name = errnoName(errno);
    throw new CheckpointError(
      name === 'EACCES' || name === 'EPERM' ? 'VM_PERMISSION' : 'FFI_FAILED',
      `${what}: ${name}`,
      {
        hint: 'run as root in the control domain (dom0), with the modules xen-privcmd and xen-evtchn loaded',
      },
    );
  }

  #openStore(): Pointer {
    this.#mustBeOpen();
    this.#store ??= this.#open('xs_open', this.#calls.storeOpen(0), koffi.errno());
    return this.#store;
  }

  /**
   * Memory that may be handed to the hypervisor: the library locks it and wants its own structure around it.
   */
  #hypercallBuffer(pages: number): { readonly struct: Uint8Array; readonly address: Pointer } {
    if (this.#bitmap?.pages === pages) return this.#bitmap;
    this.#freeBuffer();
    const { sizeBytes, userBuffer } = this.table.hypercallBuffer;
    const struct = new Uint8Array(sizeBytes);
    // What DECLARE_HYPERCALL_BUFFER puts there: "no user buffer behind it".
    new DataView(struct.buffer).setBigInt64(userBuffer, -1n, true);
    const address = this.#calls.bufferAlloc(this.#control, struct, pages) as Pointer | null;
    if (address === null) {
      throw new CheckpointError('FFI_FAILED', `allocating ${pages} pages for the dirty bitmap`, {
        retryable: true,
      });
    }
    this.#bitmap = { struct, address, pages };
    return this.#bitmap;
  }

  #freeBuffer(): void {
    if (this.#bitmap === undefined) return;
    this.#calls.bufferFree(this.#control, this.#bitmap.struct, this.#bitmap.pages);
    this.#bitmap = undefined;
  }
}

function load(version: XenVersion): ReturnType<typeof declareCalls> {
  const names = libraryNames(version);
  try {
    return declareCalls({
      control: koffi.load(names.control),
      guest: koffi.load(names.guest),
      memory: koffi.load(names.foreignMemory),
      store: koffi.load(names.store),
      libc: koffi.load('libc.so.6'),
    });
  } catch (cause) {
    throw new CheckpointError(
      'VM_UNSUPPORTED',
      `cannot load Xen's libraries for ${version.major}.${version.minor}`,
      {
        cause,
        hint: `wanted: ${Object.values(names).join(', ')} (Debian: xen-utils-${version.major}.${version.minor})`,
      },
    );
  }
}

type Library = ReturnType<typeof koffi.load>;

/**
 * Prototypes as in xenctrl.h, xenguest.h, xenforeignmemory.h and xenstore.h, with every structure as plain
 * memory.
 */
function declareCalls(from: Readonly<Record<'control' | 'guest' | 'memory' | 'store' | 'libc', Library>>) {
  const { control, guest, memory, store, libc } = from;
  const declare = (library: Library, prototype: string): Raw => library.func(prototype) as Raw;
  return {
    copy: declare(libc, 'void *memcpy(void *to, void *from, size_t n)'),
    free: declare(libc, 'void free(void *p)'),
    xcOpen: declare(control, 'void *xc_interface_open(void *logger, void *build_logger, unsigned int flags)'),
    xcClose: declare(control, 'int xc_interface_close(void *x)'),
    xcInfo: declare(
      control,
      'int xc_domain_getinfolist(void *x, uint32_t first, unsigned int max, void *info)',
    ),
    xcFrames: declare(control, 'int xc_domain_nr_gpfns(void *x, uint32_t d, void *out)'),
    xcShadow: declare(
      control,
      'int xc_shadow_control(void *x, uint32_t d, unsigned int op, void *mb, unsigned int mode)',
    ),
    xcLogDirty: declare(
      control,
      'long long xc_logdirty_control(void *x, uint32_t d, unsigned int op, void *buffer, unsigned long pages, unsigned int mode, void *stats)',
    ),
    bufferAlloc: declare(control, 'void *xc__hypercall_buffer_alloc_pages(void *x, void *buffer, int pages)'),
    bufferFree: declare(control, 'void xc__hypercall_buffer_free_pages(void *x, void *buffer, int pages)'),
    xcTypes: declare(
      control,
      'int xc_get_pfn_type_batch(void *x, uint32_t d, unsigned int count, void *frames)',
    ),
    xcContext: declare(
      control,
      'int xc_domain_hvm_getcontext(void *x, uint32_t d, void *into, uint32_t size)',
    ),
    xcParam: declare(control, 'int xc_hvm_param_get(void *x, uint32_t d, uint32_t index, void *value)'),
    xcGrantVersion: declare(control, 'int xc_gnttab_get_version(void *x, uint32_t d)'),
    xcGrantSize: declare(control, 'int xc_gnttab_query_size(void *x, void *query)'),
    xcTsc: declare(
      control,
      'int xc_domain_get_tsc_info(void *x, uint32_t d, void *mode, void *ns, void *khz, void *incarnation)',
    ),
    xcWidth: declare(control, 'int xc_domain_get_guest_width(void *x, uint32_t d, void *width)'),
    xcVcpu: declare(control, 'int xc_vcpu_getcontext(void *x, uint32_t d, uint32_t vcpu, void *into)'),
    xcDomctl: declare(control, 'int xc_domctl(void *x, void *domctl)'),
    xcShutdown: declare(control, 'int xc_domain_shutdown(void *x, uint32_t d, int reason)'),
    xcResume: declare(guest, 'int xc_domain_resume(void *x, uint32_t d, int fast)'),
    policyInit: declare(guest, 'void *xc_cpu_policy_init(void)'),
    policyDestroy: declare(guest, 'void xc_cpu_policy_destroy(void *policy)'),
    policySize: declare(guest, 'int xc_cpu_policy_get_size(void *x, void *leaves, void *msrs)'),
    policyDomain: declare(guest, 'int xc_cpu_policy_get_domain(void *x, uint32_t d, void *policy)'),
    policySerialise: declare(
      guest,
      'int xc_cpu_policy_serialise(void *x, void *policy, void *leaves, void *leaf_count, void *msrs, void *msr_count)',
    ),
    memoryOpen: declare(memory, 'void *xenforeignmemory_open(void *logger, unsigned int flags)'),
    memoryClose: declare(memory, 'int xenforeignmemory_close(void *f)'),
    memoryMap: declare(
      memory,
      'void *xenforeignmemory_map(void *f, uint32_t d, int prot, size_t count, void *frames, void *errors)',
    ),
    memoryUnmap: declare(memory, 'int xenforeignmemory_unmap(void *f, void *address, size_t count)'),
    memoryResource: declare(
      memory,
      'void *xenforeignmemory_map_resource(void *f, uint16_t d, unsigned int type, unsigned int id, unsigned long frame, unsigned long count, void *address, int prot, int flags)',
    ),
    memoryRelease: declare(memory, 'int xenforeignmemory_unmap_resource(void *f, void *resource)'),
    storeOpen: declare(store, 'void *xs_open(unsigned long flags)'),
    storeClose: declare(store, 'void xs_close(void *h)'),
    storeRead: declare(store, 'void *xs_read(void *h, uint32_t t, const char *path, void *length)'),
    storeWrite: declare(
      store,
      'bool xs_write(void *h, uint32_t t, const char *path, void *data, unsigned int length)',
    ),
    storeBegin: declare(store, 'uint32_t xs_transaction_start(void *h)'),
    storeEnd: declare(store, 'bool xs_transaction_end(void *h, uint32_t t, bool abort)'),
    storeResume: declare(store, 'bool xs_resume_domain(void *h, unsigned int domid)'),
  };
}

function result(raw: unknown): CallResult {
  const errno = koffi.errno();
  const value = Number(raw);
  return value < 0 ? { value: -1, errno } : { value, errno: 0 };
}
