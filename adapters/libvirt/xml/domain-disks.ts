/** The disks of a domain as its XML names them, and their edits. */

import { CheckpointError } from '../../../src/errors.js';
import { escaped, unescaped } from './xml-text.js';

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
  /** The whole element. */
  readonly xml: string;
}

const DISK = /<disk\b[^>]*>[\s\S]*?<\/disk>/g;

/** Finds the disks in the order of the XML. */
export function disksIn(domainXml: string): readonly DomainDisk[] {
  return [...domainXml.matchAll(DISK)].map(([xml]) => {
    // What stands below is the chain of images and a copy under way; each has a source of its own.
    const own = xml.replace(/<(backingStore|mirror)\b[\s\S]*<\/\1>/g, '');
    return {
      target: unescaped(/<target\b[^>]*\bdev=(['"])(?<name>.*?)\1/.exec(own)?.groups?.name ?? ''),
      path: pathIn(/<source\b[^>]*>/.exec(own)?.[0] ?? ''),
      format: /<driver\b[^>]*\btype=(['"])(?<format>.*?)\1/.exec(own)?.groups?.format ?? 'raw',
      type: /<disk\b[^>]*?\btype=(['"])(?<type>.*?)\1/.exec(own)?.groups?.type ?? '',
      isWritable: !/<readonly\s*\/>/.test(own),
      xml,
    };
  });
}

function pathIn(source: string): string {
  const value = (name: string): string =>
    unescaped(new RegExp(`\\b(?:${name})=(['"])(?<value>.*?)\\1`).exec(source)?.groups?.value ?? '');
  return value('protocol') === 'rbd' ? `rbd:${value('name')}` : value('file|dev|path');
}

/**
 * The same domain with another image in a disk. The chain below the image is left out: libvirt looks it up.
 * @throws USAGE when there is no such disk
 */
export function withDisk(domainXml: string, target: string, path: string, format?: string): string {
  const disk = disksIn(domainXml).find((candidate) => candidate.target === target);
  if (disk === undefined) {
    throw new CheckpointError('USAGE', `the domain has no disk ${target}`, {
      hint: `it has: ${disksIn(domainXml)
        .map((known) => known.target)
        .join(', ')}`,
    });
  }
  const source = `<source file='${escaped(path)}'`;
  let changed = disk.xml
    .replace(/\s*<backingStore\b[\s\S]*<\/backingStore>/, '')
    .replace(/\s*<backingStore\b[^>]*\/>/, '')
    .replace(/(<disk\b[^>]*?\btype=)(['"]).*?\2/, "$1'file'")
    .replace(/<source\b[^>]*?(?=\/?>)/, () => source);
  if (format !== undefined) {
    changed = changed.replace(
      /(<driver\b[^>]*?\btype=)(['"]).*?\2/,
      (_, before: string) => `${before}'${format}'`,
    );
  }
  return domainXml.replace(disk.xml, () => changed);
}
