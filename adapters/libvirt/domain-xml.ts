/** The recorded domain XML: taken from a checkpoint with care, and given another name or UUID. */

import { CheckpointError } from '../../src/errors.js';
import type { JsonObject } from '../../src/types.js';

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
    throw new CheckpointError('VM_UNSUPPORTED', 'the recorded domain XML has no name or no UUID');
  }
  return { name: unescaped(name), uuid };
}

/**
 * The edits of `restore --set-arg`: -name=NAME and -uuid=UUID. Everything else of a domain is edited in an exported image
 * (virsh save-image-edit).
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
        hint: 'possible: -name=NAME and -uuid=UUID; for the rest cairn export --format libvirt, then virsh save-image-edit',
      });
    }
    const put = (_: string, before: string): string => `${before}${escaped(value)}`;
    edited = edited.replace(option === 'name' ? NAME : UUID, put);
  }
  return edited;
}

/** Of the domain: no element of that name stands deeper before it, libvirt writes them first. */
const NAME = /(<domain\b[^>]*>\s*<name>)(?<value>[^<]+)/;
const UUID = /(<domain\b[^>]*>\s*<name>[^<]*<\/name>\s*<uuid>)(?<value>[^<]+)/;

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

function unescaped(text: string): string {
  return text
    .replaceAll('&lt;', '<')
    .replaceAll('&gt;', '>')
    .replaceAll('&apos;', "'")
    .replaceAll('&quot;', '"')
    .replaceAll('&amp;', '&');
}
