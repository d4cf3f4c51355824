/** The disks of a domain as its XML names them, and their edits. */

import { CheckpointError } from '../../../src/errors.js';
import { escaped } from './xml-text.js';
import {
  applyEdits,
  below,
  parseXml,
  withAttributes,
  without,
  type XmlEdit,
  type XmlElement,
} from './xml-document.js';

export interface DomainDisk {
  /** What virsh calls it: vda, sdb. */
  readonly target: string;
  /**
   * Path of the file or block device, or `rbd:POOL/[NAMESPACE/]IMAGE` for an image of Ceph; otherwise empty.
   */
  readonly path: string;
  /** Format of the image: qcow2, raw. */
  readonly format: string;
  /** Type of the source: file, block, network, vhostuser and so on. */
  readonly type: string;
  readonly isWritable: boolean;
}

/** Path of the file with the variables of UEFI firmware; empty where there is none. @throws VM_UNSUPPORTED */
export function nvramIn(domainXml: string): string {
  const [nvram] = below(parseXml(domainXml, 'the XML of the domain'), 'os', 'nvram');
  if (nvram === undefined) return '';
  // Since libvirt 8.5 the file may also stand in a source of its own.
  return below(nvram, 'source')[0]?.attribute('file') ?? nvram.text().trim();
}

/** Finds the disks in the order of the XML. @throws VM_UNSUPPORTED */
export function disksIn(domainXml: string): readonly DomainDisk[] {
  return diskElements(domainXml).map(diskOf);
}

function diskElements(domainXml: string): readonly XmlElement[] {
  return below(parseXml(domainXml, 'the XML of the domain'), 'devices', 'disk');
}

/**
 * The disk's own source is right below its element; the chain of images and a copy under way stand deeper.
 */
function diskOf(disk: XmlElement): DomainDisk {
  return {
    target: targetOf(disk),
    path: pathOf(below(disk, 'source')[0]),
    format: below(disk, 'driver')[0]?.attribute('type') ?? 'raw',
    type: disk.attribute('type') ?? '',
    isWritable: below(disk, 'readonly').length === 0,
  };
}

function targetOf(disk: XmlElement): string {
  return below(disk, 'target')[0]?.attribute('dev') ?? '';
}

function pathOf(source: XmlElement | undefined): string {
  if (source?.attribute('protocol') === 'rbd') return `rbd:${source.attribute('name') ?? ''}`;
  return source?.attribute('file') ?? source?.attribute('dev') ?? source?.attribute('path') ?? '';
}

/**
 * The same domain with another image in a disk. The chain below the image is left out: libvirt looks it up.
 * @throws USAGE when there is no such disk
 */
export function withDisk(domainXml: string, target: string, path: string, format?: string): string {
  const disks = diskElements(domainXml);
  const disk = disks.find((candidate) => targetOf(candidate) === target);
  if (disk === undefined) {
    throw new CheckpointError('USAGE', `the domain has no disk ${target}`, {
      hint: `it has: ${disks.map(targetOf).join(', ')}`,
    });
  }
  const source = below(disk, 'source')[0];
  const driver = below(disk, 'driver')[0];
  const startTag = withAttributes(domainXml, disk, { type: 'file' });
  const missing = source === undefined ? `<source file='${escaped(path)}'/>` : '';
  return applyEdits(domainXml, [
    { ...startTag, text: `${startTag.text}${missing}` },
    ...(source === undefined ? [] : [sourceAt(domainXml, source, path)]),
    ...(driver === undefined || format === undefined
      ? []
      : [withAttributes(domainXml, driver, { type: format })]),
    ...below(disk, 'backingStore').map((chain) => without(domainXml, chain)),
  ]);
}

/** What else it said of the former source is no longer true; labels and the like in it stay. */
function sourceAt(domainXml: string, source: XmlElement, path: string): XmlEdit {
  const former = Object.fromEntries(source.attributeNames.map((name) => [name, undefined]));
  return withAttributes(domainXml, source, { ...former, file: path });
}
