/**
 * Cuts the device part of a migration stream into its sections. A section body carries no length: the vmdesc
 * behind the EOF byte gives it, and where there is none, the footer is searched for.
 *
 *     04 | u32 id | u8 length, name | u32 instance | u32 version | body | 7e | u32 id
 */

import { CheckpointError } from '../../../src/errors.js';
import { FOOTER_BYTES, SECTION } from './format.js';

export interface DeviceSection {
  readonly id: number;
  readonly name: string;
  readonly instanceId: number;
  readonly version: number;
  /** A view of the input. */
  readonly body: Buffer;
  /** Header, body and footer; a view of the input. */
  readonly bytes: Buffer;
}

/** A machine with thousands of CPUs has some ten thousand. */
const MAX_SECTIONS = 1 << 16;

/** Length of a section's body by what the vmdesc says of it; undefined when it says nothing. */
export type SectionLengths = (name: string, instanceId: number) => number | undefined;

/**
 * The sections of `part`, which starts with a section and ends where the last footer ends or behind an EOF
 * byte.
 * @returns the sections, and how many bytes of `part` they and the EOF byte take
 * @throws STREAM_MALFORMED
 */
export function splitSections(
  part: Buffer,
  lengths: SectionLengths = () => undefined,
): { readonly sections: readonly DeviceSection[]; readonly length: number; readonly sawEof: boolean } {
  const sections: DeviceSection[] = [];
  let at = 0;
  while (at < part.length) {
    if (part[at] === SECTION.EOF) return { sections, length: at + 1, sawEof: true };
    if (sections.length === MAX_SECTIONS) throw malformed(at, 'more sections than any machine has');
    const section = readSection(part, at, lengths);
    sections.push(section);
    at += section.bytes.length;
  }
  return { sections, length: at, sawEof: false };
}

function readSection(part: Buffer, start: number, lengths: SectionLengths): DeviceSection {
  if (part[start] !== SECTION.FULL)
    throw malformed(start, `a section of type ${part[start] ?? 'none'} among the devices`);
  const name = nameAt(part, start + 5);
  if (name === undefined) throw malformed(start, 'a section without a readable name');
  const bodyStart = start + 6 + name.length + 8;
  if (bodyStart > part.length) throw malformed(start, 'a section header is cut off');
  const id = part.readUInt32BE(start + 1);
  const instanceId = part.readUInt32BE(bodyStart - 8);
  const version = part.readUInt32BE(bodyStart - 4);
  const length = lengths(name, instanceId);
  const bodyEnd = length === undefined ? findFooter(part, bodyStart, id) : bodyStart + length;
  if (bodyEnd === undefined || !footerAt(part, bodyEnd, id))
    throw malformed(start, `the section "${name}" has no footer`);
  const body = part.subarray(bodyStart, bodyEnd);
  return { id, name, instanceId, version, body, bytes: part.subarray(start, bodyEnd + FOOTER_BYTES) };
}

function nameAt(part: Buffer, at: number): string | undefined {
  const length = part[at] ?? 0;
  const name = part.toString('latin1', at + 1, at + 1 + length);
  return name.length === length && /^[\x21-\x7e]+$/.test(name) ? name : undefined;
}

function footerAt(part: Buffer, at: number, id: number): boolean {
  return at + FOOTER_BYTES <= part.length && part[at] === SECTION.FOOTER && part.readUInt32BE(at + 1) === id;
}

/**
 * The first footer of this id that the end, the EOF byte, or another section with a readable name follows.
 */
function findFooter(part: Buffer, from: number, id: number): number | undefined {
  const mark = Buffer.alloc(FOOTER_BYTES);
  mark[0] = SECTION.FOOTER;
  mark.writeUInt32BE(id, 1);
  for (let at = part.indexOf(mark, from); at >= 0; at = part.indexOf(mark, at + 1)) {
    const next = at + FOOTER_BYTES;
    if (next === part.length) return at;
    if (part[next] === SECTION.EOF && (next + 1 === part.length || part[next + 1] === SECTION.VMDESC))
      return at;
    if (part[next] === SECTION.FULL && part[next + 1] === 0 && nameAt(part, next + 5) !== undefined)
      return at;
  }
  return undefined;
}

function malformed(at: number, what: string): CheckpointError {
  return new CheckpointError('STREAM_MALFORMED', `the device state is not usable at its byte ${at}: ${what}`);
}
