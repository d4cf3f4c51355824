import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';

import { describe, expect, it } from '@jest/globals';

import {
  formatDomainAddress,
  parseDomainAddress,
  parseRestoreTarget,
} from '../../adapters/libvirt/address.js';
import { isStartedFor } from '../../adapters/libvirt/domain-process.js';
import { DiskDrivers } from '../../adapters/disks/disk-drivers.js';
import { compressInto, IMAGE_COMPRESSIONS } from '../../adapters/libvirt/restore/compression.js';
import { disksIn, withDisk } from '../../adapters/libvirt/xml/domain-disks.js';
import {
  editedXml,
  identityIn,
  recordedXml,
  renamed,
  withNewMacs,
} from '../../adapters/libvirt/xml/domain-xml.js';
import { libvirtOverlays, snapshotXml } from '../../adapters/libvirt/qemu/external-snapshot.js';
import { describeFailure, libvirtError } from '../../adapters/libvirt/native/libvirt-error.js';
import { resultOf } from '../../adapters/libvirt/qemu/monitor.js';
import { pushStream } from '../../adapters/qemu/stream/push.js';
import { saveImageHead } from '../../adapters/libvirt/save-image.js';
import { escaped, unescaped } from '../../adapters/libvirt/xml/xml-text.js';
import { CheckpointError } from '../../src/errors.js';

const UUID = '30c526e0-ee48-4b63-8d6a-f7642f082b91';
const XML = `<domain type='kvm' id='3'>
  <name>a &amp; b</name>
  <uuid>${UUID}</uuid>
  <metadata><app:name xmlns:app="urn:x">inner</app:name></metadata>
  <devices><interface><name>not the domain</name></interface></devices>
</domain>`;

describe('the address of a domain', () => {
  it.each([
    ['libvirt:web1', 'qemu:///system', 'web1'],
    ['libvirt:qemu:///session#web1', 'qemu:///session', 'web1'],
    [`libvirt:${UUID}`, 'qemu:///system', UUID],
    ['libvirt:#7', 'qemu:///system', '7'],
    ['libvirt:a:b/c', 'qemu:///system', 'a:b/c'],
  ])('%s', (address, uri, domain) => {
    expect(parseDomainAddress(address)).toEqual({ uri, domain });
    expect(parseDomainAddress(formatDomainAddress({ uri, domain }))).toEqual({ uri, domain });
  });

  it.each(['libvirt:', 'libvirt:qemu:///system#', 'libvirt:a#b#c', 'qmp:/run/x'])('is not %s', (address) => {
    expect(() => parseDomainAddress(address)).toThrow(expect.objectContaining({ code: 'VM_ADDRESS' }));
  });

  it.each(['qemu+ssh://host/system', 'xen:///system', 'qemu://host/system', 'lxc:///'])(
    'is none of this host at %s',
    (uri) => {
      expect(() => parseDomainAddress(`libvirt:${uri}#web1`)).toThrow(
        expect.objectContaining({ code: 'VM_UNSUPPORTED' }),
      );
    },
  );

  it('as the target of a restore is a connection alone', () => {
    expect(parseRestoreTarget('libvirt')).toBe('qemu:///system');
    expect(parseRestoreTarget('libvirt:')).toBe('qemu:///system');
    expect(parseRestoreTarget('libvirt:qemu:///session')).toBe('qemu:///session');
    expect(parseRestoreTarget('unix:/run/incoming')).toBeUndefined();
  });
});

describe('the process of a domain', () => {
  const argv = (name: string, uuid = UUID): string[] => ['qemu', '-name', name, '-S', '-uuid', uuid];

  it('was started with its name and UUID', () => {
    expect(isStartedFor(argv('guest=web1,debug-threads=on'), { name: 'web1', uuid: UUID })).toBe(true);
    expect(isStartedFor(argv('guest=a,,b'), { name: 'a,b', uuid: UUID })).toBe(true);
  });

  it('is none that only looks like it', () => {
    expect(isStartedFor(argv('guest=web10'), { name: 'web1', uuid: UUID })).toBe(false);
    expect(isStartedFor(argv('guest=web1', UUID.replace('3', '4')), { name: 'web1', uuid: UUID })).toBe(
      false,
    );
    expect(isStartedFor(['sleep', '9'], { name: 'web1', uuid: UUID })).toBe(false);
    expect(isStartedFor([], { name: 'web1', uuid: UUID })).toBe(false);
  });
});

describe('the XML of a domain', () => {
  it('is taken from a checkpoint of libvirt only', () => {
    expect(recordedXml({ domainXml: XML })).toBe(XML);
    for (const domainXml of [undefined, 1, '', '<evil/>', '<domain\0']) {
      expect(() => recordedXml(domainXml === undefined ? {} : { domainXml })).toThrow(
        expect.objectContaining({ code: 'VM_UNSUPPORTED' }),
      );
    }
  });

  it('gets another name and UUID, and nothing else changes', () => {
    const uuid = '11111111-2222-3333-4444-555555555555';
    const edited = editedXml(XML, ['-name=<web$1>', `-uuid=${uuid}`]);
    expect(identityIn(edited)).toEqual({ name: '<web$1>', uuid });
    expect(edited.replace('&lt;web$1&gt;', 'a &amp; b').replace(uuid, UUID)).toBe(XML);
    expect(identityIn(XML)).toEqual({ name: 'a & b', uuid: UUID });
  });

  it.each(['-m=512', '-uuid=short', '-name=', 'name=x'])('refuses the edit %s', (edit) => {
    expect(() => editedXml(XML, [edit])).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });
});

describe('the disks of a domain', () => {
  const chain = `<disk type='block' device='disk'>
    <driver name='qemu' type='raw' cache='none'/>
    <source dev='/dev/vg/a&amp;b' index='2'/>
    <backingStore type='file' index='1'><format type='qcow2'/><source file='/base'/><backingStore/></backingStore>
    <target dev='vda' bus='virtio'/>
  </disk>`;
  const cdrom = `<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>`;
  const xml = `<domain><devices>${chain}${cdrom}</devices></domain>`;

  it('are named by their own source, not by those below', () => {
    expect(disksIn(xml)).toMatchObject([
      { target: 'vda', path: '/dev/vg/a&b', format: 'raw' },
      { target: 'sda', path: '' },
    ]);
  });

  it('take another image, and nothing else changes', () => {
    const moved = withDisk(xml, 'vda', "/srv/it's.qcow2", 'qcow2');
    expect(disksIn(moved)[0]).toMatchObject({ target: 'vda', path: "/srv/it's.qcow2", format: 'qcow2' });
    expect(moved).not.toContain('backingStore');
    expect(moved).toContain("<disk type='file' device='disk'>");
    expect(moved).toContain(cdrom);
    expect(() => withDisk(xml, 'vdb', '/x')).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });

  it('are snapshotted one by one', () => {
    const snapshot = {
      diskId: 'n',
      path: '/dev/vg/a&b',
      overlayPath: '/o',
    } as const;
    expect(snapshotXml(xml, [snapshot])).toBe(
      "<domainsnapshot><disks><disk name='vda' snapshot='external' type='file'><driver type='qcow2'/>" +
        "<source file='/o'/></disk><disk name='sda' snapshot='no'/></disks></domainsnapshot>",
    );
    expect(() => snapshotXml(xml, [{ ...snapshot, path: '/x' }])).toThrow(
      expect.objectContaining({ code: 'DISK_SNAPSHOT_FAILED' }),
    );
  });
});

describe('overlays of a snapshot that libvirt reported as failed', () => {
  const fail = async (
    xmlAfter: (overlays: readonly string[]) => Promise<string>,
  ): Promise<{ left: readonly string[]; error: unknown; overlays: readonly string[] }> => {
    const dir = mkdtempSync(join(tmpdir(), "cairn-it's-"));
    const named = ['vda', 'vdb'].map((id) => ({
      id,
      path: join(dir, `${id}.qcow2`),
      format: 'qcow2',
      writable: true,
      virtualSizeBytes: 4096,
      snapshotModes: ['external'] as const,
    }));
    const xml = `<domain><devices>${named
      .map(({ id, path }) => `<disk type='file'><source file="${path}"/><target dev='${id}'/></disk>`)
      .join('')}</devices></domain>`;
    let overlays: readonly string[] = [];
    const domain = {
      snapshotDisks: (text: string): Promise<void> => {
        overlays = [...text.matchAll(/<source file='(.*?)'/g)].map((match) => unescaped(match[1]!));
        for (const path of overlays) writeFileSync(path, '');
        return Promise.reject(new CheckpointError('VM_UNREACHABLE', 'the connection was cut'));
      },
      xml: () => xmlAfter(overlays),
    };
    const disks = new DiskDrivers({ cwd: '/', overlays: libvirtOverlays(domain, () => xml) });
    try {
      const error: unknown = await disks.snapshot('ck', named, 'external').catch((e: unknown) => e);
      return { left: overlays.filter((path) => existsSync(path)), error, overlays };
    } finally {
      rmSync(dir, { recursive: true });
    }
  };

  it('are removed when the domain does not use them', async () => {
    const { left, error } = await fail(() => Promise.resolve('<domain/>'));
    expect(left).toEqual([]);
    expect(error).toMatchObject({ code: 'DISK_SNAPSHOT_FAILED', detail: { possiblyPresent: [] } });
  });

  it('stay when the domain writes to them', async () => {
    const { left, error, overlays } = await fail(([first]) =>
      Promise.resolve(`<disk><source file='${escaped(first!)}'/></disk>`),
    );
    expect(left).toEqual([overlays[0]]);
    expect(error).toMatchObject({ code: 'DISK_SNAPSHOT_FAILED', detail: { possiblyPresent: left } });
  });

  it('stay when libvirt does not say', async () => {
    const { left, overlays } = await fail(() => Promise.reject(new Error('no answer')));
    expect(left).toEqual(overlays);
    expect(left).toHaveLength(2);
  });
});

describe('a copy of a domain', () => {
  it('has another name, UUID and, if asked for, MAC addresses', () => {
    const net = XML.replace(
      '<devices>',
      "<devices><mac address='52:54:00:aa:bb:cc'/><mac address='00:11:22:33:44:55'/>",
    );
    const copy = identityIn(renamed(net, 'web2'));
    expect(copy.name).toBe('web2');
    expect(copy.uuid).not.toBe(UUID);
    expect(renamed(net, 'web2')).toContain('52:54:00:aa:bb:cc');
    expect(withNewMacs(net)).not.toContain('52:54:00:aa:bb:cc');
    // Of a real card, or given by somebody's plan.
    expect(withNewMacs(net)).toContain('00:11:22:33:44:55');
  });
});

describe('a save image', () => {
  it('starts with a header whose numbers find XML and stream', () => {
    const xml = `${XML}<!-- ü -->`;
    const head = saveImageHead(xml);
    expect(head.toString('latin1', 0, 16)).toBe('LibvirtQemudSave');
    const numbers = Array.from({ length: 19 }, (_, i) => head.readUInt32LE(16 + 4 * i));
    expect(numbers).toEqual([2, head.length - 92, 1, 0, 0, ...Array<number>(14).fill(0)]);
    const end = head.indexOf(0, 92);
    expect(head.toString('utf8', 92, end)).toBe(xml);
    expect(head.subarray(end).every((byte) => byte === 0)).toBe(true);
  });
});

describe('a compressed save image', () => {
  const data = Buffer.from('memory of a guest '.repeat(50_000));
  const installed = IMAGE_COMPRESSIONS.filter(
    ({ program }) => spawnSync(program, ['--version']).status === 0,
  );
  async function compressed(compression: (typeof IMAGE_COMPRESSIONS)[number]): Promise<Buffer> {
    const sink = new PassThrough();
    const chunks: Buffer[] = [];
    sink.on('data', (chunk: Buffer) => chunks.push(chunk));
    const bytes = await compressInto(sink, compression, (into) => pushStream(Readable.from([data]), into));
    expect(Buffer.concat(chunks)).toHaveLength(bytes);
    return Buffer.concat(chunks);
  }

  it.each(installed)('is what $program reads', async (compression) => {
    const small = await compressed(compression);
    expect(small.length).toBeLessThan(data.length / 10);
    const { stdout } = spawnSync(compression.program, ['-dc'], { input: small, maxBuffer: 1 << 24 });
    expect(stdout.equals(data)).toBe(true);
  });

  it('needs its program', async () => {
    await expect(compressed({ id: 9, program: 'no-such-program' })).rejects.toMatchObject({ code: 'USAGE' });
  });

  it('fails with what fails to fill it', async () => {
    const failing = compressInto(new PassThrough(), IMAGE_COMPRESSIONS[0]!, () =>
      Promise.reject(new Error('damage')),
    );
    await expect(failing).rejects.toThrow('damage');
  });
});

describe('what libvirt hands on from QEMU', () => {
  it('is the result', () => {
    expect(resultOf('query-name', '{"return":{"name":"web1"},"id":"libvirt-9"}')).toEqual({ name: 'web1' });
  });

  it('or the error with its class', () => {
    expect(() => resultOf('stop', '{"id":"x","error":{"class":"GenericError","desc":"no"}}')).toThrow(
      expect.objectContaining({
        code: 'QMP_COMMAND',
        detail: { class: 'GenericError', desc: 'no', command: 'stop' },
      }),
    );
  });

  it.each(['', 'null', '[]', '{}', '{"error":1}'])('and never %s', (reply) => {
    expect(() => resultOf('stop', reply)).toThrow(expect.objectContaining({ code: 'QMP_PROTOCOL' }));
  });
});

describe("libvirt's errors", () => {
  it.each([
    [42, "Domain not found: no domain with matching name 'x'", 'VM_ADDRESS'],
    [55, 'Requested operation is not valid: domain is not running', 'VM_GONE'],
    [38, 'Failed to connect socket to /x: Permission denied', 'VM_PERMISSION'],
    [38, 'Failed to connect socket to /x: No such file or directory', 'VM_UNREACHABLE'],
    [45, 'authentication unavailable', 'VM_PERMISSION'],
    [1, 'internal error: something', 'VM_STATE'],
  ])('%i %s', (code, message, expected) => {
    expect(describeFailure({ code, message }).code).toBe(expected);
  });

  it('can be tried again when another operation holds the domain', () => {
    const error = libvirtError('pausing', { code: 68, message: 'cannot acquire state change lock' });
    expect(error).toMatchObject({ code: 'VM_STATE', retryable: true });
  });
});
