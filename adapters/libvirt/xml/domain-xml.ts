/** The recorded domain XML: taken from a checkpoint with care, and given another identity. */

import { randomBytes, randomUUID } from 'node:crypto';

import { CheckpointError } from '../../../src/errors.js';
import type { JsonObject } from '../../../src/types.js';
import { escaped, unescaped } from './xml-text.js';

export interface DomainIdentity {
  readonly name: string;
  readonly uuid: string;
}

/** @throws VM_UNSUPPORTED when the checkpoint is not of a libvirt domain */
export function recordedXml(machine: JsonObject): string {
  const xml = machine.domainXml;
  if (typeof xml === 'string' && xml.startsWith('<domain') && !xml.includes('\0')) return xml;
  throw new CheckpointError('VM_UNSUPPORTED', 'the checkpoint holds no libvirt domain', {
    hint: 'only checkpoints taken through a libvirt: address can be given to libvirt',
  });
}

/** @throws VM_UNSUPPORTED when there is no name or UUID where libvirt writes them */
export function identityIn(xml: string): DomainIdentity {
  const name = NAME.exec(xml)?.groups?.value;
  const uuid = UUID.exec(xml)?.groups?.value;
  if (name === undefined || uuid === undefined) {
    throw new CheckpointError('VM_UNSUPPORTED', 'the domain XML has no name or no UUID');
  }
  return { name: unescaped(name), uuid };
}

/** Another name, and another UUID with it. */
export function renamed(xml: string, name: string, uuid: string = randomUUID()): string {
  return put(put(xml, UUID, uuid), NAME, name);
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
    edited = put(edited, option === 'name' ? NAME : UUID, value);
  }
  return edited;
}

/** Every interface gets another address of the range that QEMU's guests have (52:54:00). */
export function withNewMacs(xml: string): string {
  return xml.replace(/(<mac\b[^>]*?\baddress=)(['"])52:54:00[^'"]*\2/gi, (_, before: string) => {
    const own = [...randomBytes(3)].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
    return `${before}'52:54:00:${own}'`;
  });
}

/**
 * The domain's name: no element of that name stands deeper before it, because libvirt writes the domain's own
 * first.
 */
const NAME = /(<domain\b[^>]*>\s*<name>)(?<value>[^<]+)/;
const UUID = /(<domain\b[^>]*>\s*<name>[^<]*<\/name>\s*<uuid>)(?<value>[^<]+)/;

function put(xml: string, where: RegExp, value: string): string {
  return xml.replace(where, (_, before: string) => `${before}${escaped(value)}`);
}
