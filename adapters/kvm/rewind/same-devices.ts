/**
 * Whether a QEMU has the devices of a device state, by the sections in which both are written. A device that is gone
 * makes the load fail in the middle; one that came would be there without the guest's knowledge.
 */

import { deviceSections } from '../../qemu/stream/device-state.js';
import { splitSections } from '../../qemu/stream/sections.js';
import { refused } from './refused.js';

const NAMED = 5;

/**
 * @param now as QEMU writes its own state
 * @throws REWIND_REFUSED, STREAM_MALFORMED
 */
export function refuseOtherDevices(now: Uint8Array, then: Uint8Array): void {
  const [present, recorded] = [namesIn(now), namesIn(then)];
  const came = [...present].filter((name) => !recorded.has(name));
  const gone = [...recorded].filter((name) => !present.has(name));
  if (came.length === 0 && gone.length === 0) return;
  const texts = [listed('were unplugged since', gone), listed('were plugged in since', came)].filter(
    (text) => text !== '',
  );
  throw refused('DEVICES_CHANGED', `devices ${texts.join('; ')}`, {
    hint: 'unplug what came and plug in again what went, or use cairn restore',
    detail: { came: came.slice(0, 100), gone: gone.slice(0, 100) },
  });
}

/** Name, instance and version of each section. */
function namesIn(blob: Uint8Array): ReadonlySet<string> {
  const { sections } = splitSections(deviceSections(blob));
  return new Set(sections.map(({ name, instanceId, version }) => `${name}/${instanceId} v${version}`));
}

function listed(what: string, names: readonly string[]): string {
  if (names.length === 0) return '';
  const more = names.length > NAMED ? ` and ${names.length - NAMED} more` : '';
  return `${what}: ${names.slice(0, NAMED).join(', ')}${more}`;
}
