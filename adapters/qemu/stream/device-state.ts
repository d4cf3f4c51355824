/**
 * The blob that `xen-save-devices-state` writes: "QEVM", u32 3, FULL sections, 00. It has no configuration
 * section and no vmdesc; its sections are byte for byte those of a genuine stream of the same VM, apart from
 * "globalstate".
 */

import { CheckpointError } from '../../../src/errors.js';
import { FOOTER_BYTES, SECTION, STREAM_HEADER_BYTES, STREAM_MAGIC, STREAM_VERSION } from './format.js';

/**
 * The sections of a device-state blob, ready to stand between the RAM sections and the EOF byte of a stream.
 * @returns a view of `blob`
 * @throws STREAM_MALFORMED
 */
export function deviceSections(blob: Uint8Array): Buffer {
  const bytes = Buffer.from(blob.buffer, blob.byteOffset, blob.byteLength);
  // Header, one section type, one footer, EOF.
  if (bytes.length < STREAM_HEADER_BYTES + 1 + FOOTER_BYTES + 1)
    throw malformed(`${bytes.length} bytes are too few`);
  if (bytes.readUInt32BE(0) !== STREAM_MAGIC) throw malformed('it does not start with "QEVM"');
  const version = bytes.readUInt32BE(4);
  if (version !== STREAM_VERSION) throw malformed(`stream version ${version} instead of ${STREAM_VERSION}`);
  if (bytes[STREAM_HEADER_BYTES] !== SECTION.FULL) throw malformed('no device section comes first');
  if (bytes[bytes.length - 1] !== SECTION.EOF) throw malformed('it does not end with the EOF byte');
  if (bytes[bytes.length - 1 - FOOTER_BYTES] !== SECTION.FOOTER)
    throw malformed('the last section has no footer');
  return bytes.subarray(STREAM_HEADER_BYTES, -1);
}

const GLOBAL_STATE_NAME = Buffer.from('\x0bglobalstate', 'latin1');
/**
 * `runstate` of vmstate_globalstate; later versions use its end for more fields, the text stays where it is.
 */
const RUN_STATE_BYTES = 32;

/**
 * The same sections with another run state in "globalstate". `xen-save-devices-state` always records
 * "running", even of a stopped VM; with "paused" the destination stays stopped until `cont`, without -S on
 * its command line.
 * @returns a copy; the caller owns it
 * @throws STREAM_MALFORMED when there is no such section
 */
export function withRunState(sections: Uint8Array, state: 'running' | 'paused'): Buffer {
  const bytes = Buffer.from(sections);
  putRunState(bytes, state);
  return bytes;
}

/** Does what `withRunState` does, in place. */
export function putRunState(sections: Uint8Array, state: 'running' | 'paused'): void {
  const bytes = Buffer.from(sections.buffer, sections.byteOffset, sections.byteLength);
  const found = globalState(bytes);
  if (found === undefined) throw malformed('it has no "globalstate" section');
  bytes.writeUInt32BE(state.length + 1, found.at);
  bytes.fill(0, found.at + 4, found.at + 4 + found.state.length + 1);
  bytes.write(state, found.at + 4, 'latin1');
}

/** The run state in "globalstate", such as running, paused, postmigrate; undefined without such a section. */
export function runStateIn(sections: Uint8Array): string | undefined {
  return globalState(Buffer.from(sections.buffer, sections.byteOffset, sections.byteLength))?.state;
}

/**
 *     04 | u32 id | 0b "globalstate" | u32 0 | u32 1 | u32 length with NUL | char[100]
 *
 * @returns where the length stands, and the text
 */
function globalState(bytes: Buffer): { readonly at: number; readonly state: string } | undefined {
  for (let at = bytes.indexOf(GLOBAL_STATE_NAME); at >= 0; at = bytes.indexOf(GLOBAL_STATE_NAME, at + 1)) {
    const body = at + GLOBAL_STATE_NAME.length + 8;
    if (at < 5 || bytes[at - 5] !== SECTION.FULL || body + 4 + RUN_STATE_BYTES > bytes.length) continue;
    const text = bytes.toString('latin1', body + 4, body + 4 + RUN_STATE_BYTES);
    const state = /^[a-z-]+(?=\0)/.exec(text)?.[0];
    if (state !== undefined && state.length + 1 === bytes.readUInt32BE(body)) return { at: body, state };
  }
  return undefined;
}

function malformed(what: string): CheckpointError {
  return new CheckpointError(
    'STREAM_MALFORMED',
    `the device state of the checkpoint cannot be used: ${what}`,
  );
}
