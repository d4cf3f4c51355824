import { describe, expect, it } from '@jest/globals';

import { editDomain } from '../../adapters/libvirt/xml/description-edits.js';
import { disksIn, nvramIn, withDisk } from '../../adapters/libvirt/xml/domain-disks.js';
import {
  hasFileMemory,
  identityIn,
  recordedXml,
  withNewMacs,
} from '../../adapters/libvirt/xml/domain-xml.js';
import { parseXml } from '../../adapters/libvirt/xml/xml-document.js';
import type { CheckpointSource } from '../../src/hypervisor/restore.js';

const domain = (inside: string): string => `<domain><name>a</name><uuid>u</uuid>${inside}</domain>`;
const laughs = Array.from({ length: 20 }, (_, i) => `<!ENTITY l${i + 1} "&l${i};&l${i};&l${i};">`).join('');

describe('XML that nobody means well with', () => {
  it.each([
    ['entities that multiply', `<!DOCTYPE d [<!ENTITY l0 "ha">${laughs}]>${domain('&l20;')}`],
    ['a document type behind the root', `${domain('')}<!DOCTYPE d SYSTEM "file:///etc/passwd">`],
    ['a document type in the middle', domain('<!DOCTYPE d [<!ENTITY a "b">]><a>&a;</a>')],
    ['a declaration in front', `<?xml version="1.0"?>${domain('')}`],
    ['ten thousand levels', domain('<a>'.repeat(10_000) + '</a>'.repeat(10_000))],
    ['more than libvirt itself takes', domain(' '.repeat(5 << 20))],
    ['a NUL', domain('<a>\0</a>')],
    ['an escape', domain('<a b="\x1b[2J"/>')],
    ['half of a pair', domain('<a>\ud83d</a>')],
    ['two roots', `${domain('')}${domain('')}`],
    ['text behind the root', `${domain('')}x`],
    ['an end that is none', domain('<a></b>')],
    ['no end', '<domain><name>a</name>'],
    ['an attribute twice', domain('<a b="1" b="2"/>')],
    ['an attribute without quotes', domain('<a b=1/>')],
    ['a name that JavaScript has plans for', domain('<a __proto__="1"/>')],
    ['an element of such a name', domain('<__proto__/>')],
    ['a comment without end', `${domain('')}<!-- `],
  ])('is refused: %s', (_, xml) => {
    expect(() => parseXml(xml, 'the XML of web1')).toThrow(
      expect.objectContaining({
        code: 'VM_UNSUPPORTED',
        message: expect.stringContaining('the XML of web1 cannot be used'),
        hint: expect.any(String),
      }),
    );
  });

  it.each(['&evil;', '&#0;', '&#x1f;', '&#xffffffff;', '&#55296;', '& '])(
    'is refused where it is needed: a path with %s',
    (reference) => {
      const xml = domain(`<devices><disk><source file='/a${reference}b'/></disk></devices>`);
      expect(() => disksIn(xml)).toThrow(expect.objectContaining({ code: 'VM_UNSUPPORTED' }));
    },
  );

  it('is refused in a checkpoint, which is named', () => {
    expect(() => recordedXml({ domainXml: '<domain><name>' }, 'c7')).toThrow(
      expect.objectContaining({ code: 'VM_UNSUPPORTED', message: expect.stringContaining('checkpoint c7') }),
    );
    expect(() => recordedXml({ domainXml: '<domainsnapshot/>' }, 'c7')).toThrow(
      expect.objectContaining({ code: 'VM_UNSUPPORTED' }),
    );
  });
});

describe('the name of a domain', () => {
  it('is its own, in any order, with references and verbatim text', () => {
    const inside = '<!-- <name>c</name> --><devices><name>x</name></devices>';
    const xml = `<domain>${inside}<uuid>&#117;</uuid><name>&#x41;&lt;<![CDATA[<&amp;>]]></name></domain>`;
    expect(identityIn(xml)).toEqual({ name: 'A<<&amp;>', uuid: 'u' });
  });
});

describe('a disk of a domain', () => {
  it('is none that is in a comment, in metadata, or outside of the devices', () => {
    const disk = "<disk type='file'><source file='/a'/><target dev='vda'/></disk>";
    expect(
      disksIn(domain(`<!--${disk}--><metadata>${disk}</metadata><devices><!--${disk}--></devices>`)),
    ).toEqual([]);
  });

  it('without a medium gets one', () => {
    const xml = domain("<devices><disk type='file' device='cdrom'><target dev='sda'/></disk></devices>");
    expect(disksIn(withDisk(xml, 'sda', '/x.iso'))[0]).toMatchObject({ target: 'sda', path: '/x.iso' });
  });
});

describe('the file with the variables of UEFI firmware', () => {
  it.each([
    ['as text', "<os><nvram template='/t.fd'>/var/a&amp;b.fd</nvram></os>", '/var/a&b.fd'],
    ['in a source', "<os><nvram type='file'><source file='/var/c.fd'/></nvram></os>", '/var/c.fd'],
    ['nowhere', '<os><!-- <nvram>/x</nvram> --></os><metadata><os><nvram>/y</nvram></os></metadata>', ''],
  ])('stands %s', (_, inside, path) => {
    expect(nvramIn(domain(inside))).toBe(path);
  });

  it('gets the bytes of the checkpoint where the command of the operator has put it', async () => {
    const domainXml = domain('<os><nvram>/var/old.fd</nvram></os>');
    const copied = { diskId: 'pflash1', path: '/var/old.fd', driver: 'copy', data: {} };
    const other = { ...copied, diskId: 'vda', path: '/var/web.qcow2', driver: 'internal' };
    const source = { checkpointId: 'c1', machine: { domainXml }, disks: [copied, other] };
    const { disks } = await editDomain(
      source as unknown as CheckpointSource,
      { paused: false, keepDisks: false, xmlCommand: 'sed s/old/new/' },
      { movedTo: (disk, path) => ({ ...disk, path }) },
    );
    expect(disks).toEqual([{ ...copied, path: '/var/new.fd' }, other]);
  });
});

describe('new addresses', () => {
  it('leave what is not an interface alone', () => {
    const kept =
      "<!-- <mac address='52:54:00:00:00:01'/> --><metadata><mac address='52:54:00:00:00:02'/></metadata>";
    const changed = withNewMacs(domain(`${kept}<devices><mac address="52:54:00:00:00:03"/></devices>`));
    expect(changed).toContain(kept);
    expect(changed).not.toContain('52:54:00:00:00:03');
  });
});

describe('the memory of a domain', () => {
  it('lies in a file when it says so', () => {
    expect(hasFileMemory(domain("<memoryBacking><source type='file'/></memoryBacking>"))).toBe(true);
    expect(hasFileMemory(domain("<memoryBacking><source type='memfd'/></memoryBacking>"))).toBe(false);
    expect(hasFileMemory(domain("<devices><source type='file'/></devices>"))).toBe(false);
  });
});
