/** The recorded domain XML: taken from a checkpoint with care, and given another identity. */

import { randomBytes, randomUUID } from 'node:crypto';

import { CheckpointError } from '../../../src/errors.js';
import type { JsonObject } from '../../../src/types.js';
import { applyEdits, below, parseXml, withAllBelow, withAttributes, withText } from './xml-document.js';

export interface DomainIdentity {
  readonly name: string;
  readonly uuid: string;
}

/**
 * @param checkpointId for the error
 * @throws VM_UNSUPPORTED when the checkpoint is not of a libvirt domain, or its XML is not what libvirt can
 * have written
 */
export function recordedXml(machine: JsonObject, checkpointId = ''): string {
  const xml = machine.domainXml;
  if (typeof xml !== 'string' || !xml.startsWith('<domain') || xml.includes('\0')) {
    throw new CheckpointError('VM_UNSUPPORTED', 'the checkpoint holds no libvirt domain', {
      hint: 'only checkpoints taken through a libvirt: address can be given to libvirt',
    });
  }
  return checkedDomain(xml, `the XML of the domain in checkpoint ${checkpointId}`);
}

/** @param what it is, for the error. @throws VM_UNSUPPORTED */
export function checkedDomain(xml: string, what: string): string {
  const { name } = parseXml(xml, what);
  if (name === 'domain') return xml;
  throw new CheckpointError('VM_UNSUPPORTED', `${what} is no domain but a ${name}`);
}

/** @throws VM_UNSUPPORTED when there is no name or UUID right below the domain */
export function identityIn(xml: string): DomainIdentity {
  const domain = parseXml(xml, 'the XML of the domain');
  const name = below(domain, 'name')[0]?.text() ?? '';
  const uuid = below(domain, 'uuid')[0]?.text() ?? '';
  if (name === '' || uuid === '') {
    throw new CheckpointError('VM_UNSUPPORTED', 'the domain XML has no name or no UUID');
  }
  return { name, uuid };
}

/** Another name, and another UUID with it. */
export function renamed(xml: string, name: string, uuid: string = randomUUID()): string {
  return put(put(xml, 'uuid', uuid), 'name', name);
}

/**
 * The edits of `restore --set-arg`: -name=NAME and -uuid=UUID, what of QEMU's command line a domain shares.
 * @throws USAGE
 */
export function editedXml(xml: string, setArgs: readonly string[]): string {
  let edited = xml;
  for (const argument of setArgs) {
    const { option, value } = /^--?(?<option>name|uuid)=(?<value>.+)$/s.exec(argument)?.groups ?? {};
    if (
      value === undefined ||
      (option === 'uuid' && !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(value))
    ) {
      throw new CheckpointError('USAGE', `"${argument}" cannot be set when libvirt starts the VM`, {
        hint: 'possible: -name=NAME and -uuid=UUID; for the rest --new-name, --new-macs, --disk and --xml-edit',
      });
    }
    edited = put(edited, option === 'name' ? 'name' : 'uuid', value);
  }
  return edited;
}

/** Every interface gets another address of the range that QEMU's guests have (52:54:00). */
export function withNewMacs(xml: string): string {
  const devices = below(parseXml(xml, 'the XML of the domain'), 'devices');
  const macs = devices
    .flatMap((element) => [...withAllBelow(element)])
    .filter(({ name, attribute }) => name === 'mac' && attribute('address')?.startsWith('52:54:00') === true);
  return applyEdits(
    xml,
    macs.map((mac) => {
      const own = [...randomBytes(3)].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
      return withAttributes(xml, mac, { address: `52:54:00:${own}` });
    }),
  );
}

/** Whether the memory of the guest lies in a file, and so need not be zero at the start. */
export function hasFileMemory(xml: string): boolean {
  const sources = below(parseXml(xml, 'the XML of the domain'), 'memoryBacking', 'source');
  return sources.some(({ attribute }) => attribute('type') === 'file');
}

/** Puts a text into an element of the domain itself: elements of these names stand deeper too. */
function put(xml: string, name: 'name' | 'uuid', value: string): string {
  const elements = below(parseXml(xml, 'the XML of the domain'), name).slice(0, 1);
  return applyEdits(
    xml,
    elements.map((element) => withText(xml, element, value)),
  );
}
