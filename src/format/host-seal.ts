/**
 * What a host writes into the manifests of its own checkpoints, to know them again: HMAC-SHA256 with a key
 * that never leaves it, over everything that a restore acts on (docs/format.md, host seal).
 */

import { createHmac, timingSafeEqual } from 'node:crypto';

import type { Json, JsonObject } from '../types.js';
import { diskEntry } from './disk-entry.js';
import type { Manifest } from './manifest.js';

const PURPOSE = 'cairn-host-seal-1';

/** @returns 64 lower-case hex digits */
export function hostSealOf(manifest: Manifest, key: Uint8Array): string {
  return createHmac('sha256', key).update(sealedText(manifest), 'utf8').digest('hex');
}

export function isSealedWith(manifest: Manifest, key: Uint8Array): boolean {
  const { hostSeal } = manifest;
  if (hostSeal === undefined) return false;
  const [found, expected] = [hostSeal, hostSealOf(manifest, key)].map((hex) => Buffer.from(hex, 'hex'));
  return found!.length === expected!.length && timingSafeEqual(found!, expected!);
}

/** The sealed fields as JSON in one form only: keys in order of their UTF-16 code units, no white space. */
function sealedText(manifest: Manifest): string {
  const { id, seq, chain, vmName, hypervisor, identity, machine, layout } = manifest;
  const { runState, deviceState, segments, disks, frozen } = manifest;
  const sealed = {
    purpose: PURPOSE,
    ...{ id, seq, chain, vmName, hypervisor, identity, machine, runState, deviceState, segments },
    layout: layout.regions.map(({ id: region, sizeBytes }) => ({ id: region, sizeBytes })),
    disks: disks.map(diskEntry),
    frozen: frozen ?? null,
  };
  // Once through JSON, so that writer and reader see the same values.
  return canonical(JSON.parse(JSON.stringify(sealed)) as Json);
}

function canonical(value: Json): string {
  if (Array.isArray(value)) return `[${(value as readonly Json[]).map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const fields = Object.entries(value as JsonObject).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${fields.map(([key, inner]) => `${JSON.stringify(key)}:${canonical(inner)}`).join(',')}}`;
}
