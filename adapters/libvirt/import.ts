/**
 * A save image of libvirt (`virsh save`, `virsh managedsave`) as a checkpoint of the domain: its description
 * is in the image, so a restore starts it as it does a checkpoint that was taken of it. The disks are not in
 * it.
 */

import { HeadedBytes, type ByteSource } from '../../src/hypervisor/byte-source.js';
import type { ImportedMachine, ImportRequest } from '../../src/hypervisor/intake.js';
import { unpackMachine } from '../kvm/import.js';
import { COMPRESSIONS } from '../qemu/packed/compressions.js';
import { LIBVIRT_NAME } from './address.js';
import { readSaveImageHead } from './save-image.js';
import { disksIn } from './xml/domain-disks.js';
import { checkedDomain, identityIn } from './xml/domain-xml.js';

/** @throws STREAM_MALFORMED, VM_UNSUPPORTED for XML that is no domain's, and what `unpackMachine` throws */
export async function importSaveImage({ open, place, signal }: ImportRequest): Promise<ImportedMachine> {
  const first = new HeadedBytes(open());
  const { domainXml, wasRunning, streamFormat, sizeBytes } = await readSaveImageHead(first);
  const { name, uuid } = identityIn(checkedDomain(domainXml, 'the XML of the domain in the save image'));
  let unread: ByteSource | undefined = first;
  const { machineType, deviceState } = await unpackMachine({
    open: async () => {
      const source = unread ?? (await streamIn(open(), sizeBytes));
      unread = undefined;
      return source;
    },
    compression: COMPRESSIONS.find((compression) => compression.name === streamFormat),
    startByte: sizeBytes,
    place,
    signal,
  });
  return {
    identity: { hypervisor: LIBVIRT_NAME, name, uuid, machineType },
    machine: { machineType, domainXml },
    deviceState,
    // The stream is of a domain that libvirt has paused in any case.
    runState: wasRunning ? 'running' : 'paused',
    warnings: warningsOf(domainXml),
  };
}

async function streamIn(image: ByteSource, headBytes: number): Promise<ByteSource> {
  const source = new HeadedBytes(image);
  await source.take(headBytes);
  return source;
}

function warningsOf(domainXml: string): readonly string[] {
  const disks = disksIn(domainXml).filter(({ isWritable }) => isWritable);
  if (disks.length === 0) return [];
  const names = disks.map(({ target, path }) => (path === '' ? target : `${target} (${path})`)).join(', ');
  return [`the file holds no disks: restore it only while ${names} is as it was when the domain was saved`];
}
