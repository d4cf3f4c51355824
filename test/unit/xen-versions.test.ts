import { describe, expect, it } from '@jest/globals';

import { libraryNames, VERSION_TABLES, versionTable } from '../../adapters/xen/ffi/versions.js';

type Field = readonly [name: string, sizeBytes: number, alignment: number];

/** Offsets by the rules of the x86-64 ABI: each field at the next multiple of its alignment. */
function placed(fields: readonly Field[]): {
  readonly at: ReadonlyMap<string, number>;
  readonly sizeBytes: number;
} {
  const at = new Map<string, number>();
  let end = 0;
  let widest = 1;
  for (const [name, sizeBytes, alignment] of fields) {
    const start = Math.ceil(end / alignment) * alignment;
    at.set(name, start);
    end = start + sizeBytes;
    widest = Math.max(widest, alignment);
  }
  return { at, sizeBytes: Math.ceil(end / widest) * widest };
}

/** struct xen_domctl_getdomaininfo: the same fields in the headers of 4.16, 4.17, 4.18, 4.19 and 4.20. */
const DOMAIN_INFO = placed([
  ['domain', 2, 2],
  ['pad1', 2, 2],
  ['flags', 4, 4],
  ['tot_pages', 8, 8],
  ['max_pages', 8, 8],
  ['outstanding_pages', 8, 8],
  ['shr_pages', 8, 8],
  ['paged_pages', 8, 8],
  ['shared_info_frame', 8, 8],
  ['cpu_time', 8, 8],
  ['nr_online_vcpus', 4, 4],
  ['max_vcpu_id', 4, 4],
  ['ssidref', 4, 4],
  ['handle', 16, 1],
  ['cpupool', 4, 4],
  ['gpaddr_bits', 1, 1],
  ['pad2', 7, 1],
  ['arch_config', 8, 4],
]);

/** struct xc_hypercall_buffer */
const HYPERCALL_BUFFER = placed([
  ['hbuf', 8, 8],
  ['param_shadow', 8, 8],
  ['dir', 4, 4],
  ['ubuf', 8, 8],
  ['sz', 8, 8],
]);

/** struct xc_domain_meminfo */
const MEM_INFO = placed([
  ['pt_levels', 4, 4],
  ['guest_width', 4, 4],
  ['pfn_type', 8, 8],
  ['p2m_table', 8, 8],
  ['p2m_size', 8, 8],
  ['p2m_frames', 4, 4],
]);

describe.each(Object.entries(VERSION_TABLES))('the tables for Xen %s', (_, table) => {
  it('place the fields of xen_domctl_getdomaininfo where the header has them', () => {
    const { at, sizeBytes } = DOMAIN_INFO;
    expect(table.domainInfo).toEqual({
      sizeBytes,
      domain: at.get('domain'),
      flags: at.get('flags'),
      totPages: at.get('tot_pages'),
      maxPages: at.get('max_pages'),
      sharedInfoFrame: at.get('shared_info_frame'),
      maxVcpuId: at.get('max_vcpu_id'),
      handle: at.get('handle'),
    });
    // As measured with sizeof on 4.17.
    expect(sizeBytes).toBe(112);
  });

  it('place the fields of xc_hypercall_buffer where the header has them', () => {
    const { at, sizeBytes } = HYPERCALL_BUFFER;
    expect(table.hypercallBuffer).toEqual({ sizeBytes, userBuffer: at.get('ubuf') });
    expect(sizeBytes).toBe(40);
  });

  it('place the fields of xc_domain_meminfo where the header has them', () => {
    const { at, sizeBytes } = MEM_INFO;
    expect(table.memInfo).toEqual({
      sizeBytes,
      ptLevels: at.get('pt_levels'),
      guestWidth: at.get('guest_width'),
      pfnType: at.get('pfn_type'),
      p2mTable: at.get('p2m_table'),
      p2mSize: at.get('p2m_size'),
    });
  });
});

describe('the release of Xen', () => {
  it('decides which unstable libraries are loaded', () => {
    expect(libraryNames({ major: 4, minor: 18 })).toMatchObject({
      control: 'libxenctrl.so.4.18',
      guest: 'libxenguest.so.4.18',
    });
  });

  it.each([
    [4, 15],
    [4, 21],
    [5, 0],
  ])('%i.%i is refused: there is no table for it', (major, minor) => {
    expect(() => versionTable({ major, minor })).toThrow(expect.objectContaining({ code: 'VM_UNSUPPORTED' }));
  });
});
