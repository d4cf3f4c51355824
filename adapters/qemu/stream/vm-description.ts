/**
 * The vmdesc JSON at the end of a genuine stream: for every device section the size of each field, from which
 * the length of the section's body follows. Input is hostile until proven otherwise: depth and sums are
 * bounded.
 *
 *     { devices: [ { name, instance_id, fields: [ { size, array_len? } ],
 *                    subsections: [ { vmsd_name, fields } ] } ] }
 */

import { CheckpointError } from '../../../src/errors.js';
import { parseJson } from '../../../src/records/json-text.js';
import type { SectionLengths } from './sections.js';

const MAX_DEPTH = 32;
/** Some 100 KB of a small machine, 10 KB more for each CPU. Parsed, it takes up to twenty times as much memory. */
const MAX_CHARS = 16 << 20;
/** Type byte, name length and version around the name of a subsection. */
const SUBSECTION_HEADER_BYTES = 1 + 1 + 4;

/** @throws STREAM_MALFORMED when `json` is not such a description */
export function sectionLengths(json: string): SectionLengths {
  const lengths = new Map<string, number>();
  for (const device of list(record(parse(json)).devices)) {
    const { name, instance_id: instanceId } = record(device);
    if (typeof name !== 'string' || typeof instanceId !== 'number') throw malformed('a device has no name');
    lengths.set(`${instanceId} ${name}`, bodyLength(record(device), 0));
  }
  return (name, instanceId) => lengths.get(`${instanceId} ${name}`);
}

/** The size of a struct field includes all that is inside it. */
function bodyLength(described: Record<string, unknown>, depth: number): number {
  if (depth > MAX_DEPTH) throw malformed('its subsections are nested too deeply');
  let length = 0;
  for (const field of list(described.fields ?? [])) {
    const { size, array_len: count } = record(field);
    length += wholeNumber(size) * (count === undefined ? 1 : wholeNumber(count));
  }
  for (const subsection of list(described.subsections ?? [])) {
    const inner = record(subsection);
    if (typeof inner.vmsd_name !== 'string') throw malformed('a subsection has no name');
    length += SUBSECTION_HEADER_BYTES + inner.vmsd_name.length + bodyLength(inner, depth + 1);
  }
  return wholeNumber(length);
}

function parse(json: string): unknown {
  if (json.length > MAX_CHARS) throw malformed(`it is longer than ${MAX_CHARS >> 20} MiB`);
  try {
    return parseJson(json);
  } catch (cause) {
    throw new CheckpointError('STREAM_MALFORMED', 'the description at the end of the stream is not JSON', {
      cause,
    });
  }
}

function record(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw malformed('an object is missing');
  return value as Record<string, unknown>;
}

function list(value: unknown): readonly unknown[] {
  if (!Array.isArray(value)) throw malformed('a list is missing');
  return value;
}

function wholeNumber(value: unknown): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > 2 ** 32) {
    throw malformed('a size is not a sensible number');
  }
  return value;
}

function malformed(what: string): CheckpointError {
  return new CheckpointError(
    'STREAM_MALFORMED',
    `the description at the end of the stream is not usable: ${what}`,
  );
}
