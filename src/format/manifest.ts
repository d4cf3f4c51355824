/**
 * The manifest: one checkpoint, and the point at which it is committed (docs/format.md, manifest). Sealed
 * JSON. What is in it is durable before it is written.
 */

import { CheckpointError } from '../errors.js';
import type { DiskSnapshot } from '../hypervisor/disks.js';
import type { ForkOrigin } from '../hypervisor/fork-origin.js';
import type { FrozenGuest } from '../hypervisor/freezer.js';
import type { VmIdentity } from '../hypervisor/vm.js';
import { layOut, MAX_PAGE_SPAN, type MemoryLayout } from '../hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES, type JsonObject } from '../types.js';
import { ChainKeys, idOfKey, seqOfKey } from './chain-keys.js';
import { damaged } from '../records/damage.js';
import { diskEntry, isDiskFeature, readDiskEntry } from './disk-entry.js';
import { checkVersion, FORMAT_NAME, FORMAT_VERSION, FROZEN_GUEST_FEATURE } from './format-version.js';
import { JsonFields } from '../records/json-fields.js';
import { MAX_DELTA_DEPTH, MAX_FRAMES_PER_PACK, MAX_PACK_SEQ } from './record-ref.js';
import { MAX_SEALED_BYTES, openSealedJson, sealJson } from './sealed-json.js';

export type CheckpointKind = 'base' | 'incremental';

/** A pack that this checkpoint wrote. */
export interface PackEntry {
  readonly seq: number;
  readonly sizeBytes: number;
  readonly frameCount: number;
  /** Hex; of the pack's trailer, and through it of header, directory and every frame. */
  readonly directorySha256: string;
}

/** An index segment to consult. */
export interface SegmentEntry {
  readonly seq: number;
  /** Number of merges behind it; BOTTOM_LEVEL for the one that holds all pages not found above. */
  readonly level: number;
  readonly entryCount: number;
  readonly sizeBytes: number;
  /** Hex; of the segment's header and directory, and through these of every slice. */
  readonly directorySha256: string;
}

export interface DeviceStateEntry {
  readonly pack: number;
  readonly frame: number;
  readonly sizeBytes: number;
  readonly sha256: string;
}

/** Records of pages that did not change, written once more next to each other. */
export interface RegroupedEntry {
  /** Number of the pack; it is in `packs` and holds nothing else. */
  readonly pack: number;
  readonly pageCount: number;
}

export interface Manifest {
  readonly id: string;
  readonly seq: number;
  /** Folder name of the chain; see `chainKey`. */
  readonly chain: string;
  readonly vmName: string;
  readonly parentId: string | null;
  readonly kind: CheckpointKind;
  /** ISO 8601, UTC. */
  readonly time: string;
  readonly hypervisor: string;
  readonly identity: VmIdentity;
  /** The adapter's own; nothing here reads it. */
  readonly machine: JsonObject;
  readonly layout: MemoryLayout;
  /** The run state in which the VM was found and left; empty when nobody said. */
  readonly runState: string;
  readonly packs: readonly PackEntry[];
  /** Absent when the checkpoint regrouped no pages. */
  readonly regrouped?: RegroupedEntry;
  /** Newest first. */
  readonly segments: readonly SegmentEntry[];
  readonly deviceState: DeviceStateEntry | null;
  readonly disks: readonly DiskSnapshot[];
  /** Absent when the guest's file systems were not frozen. */
  readonly frozen?: FrozenGuest;
  /** Absent when the VM was not forked from a checkpoint on the host that took this one. */
  readonly forkedFrom?: ForkOrigin;
  /** Absent when no host said that it took the checkpoint; see `host-seal.ts`. */
  readonly hostSeal?: string;
  /** Deepest page of this checkpoint's map. */
  readonly maxDepth: number;
  /** Bytes of packs and index segment that this checkpoint added; its manifest not counted. */
  readonly storedBytes: number;
  readonly stats: JsonObject;
}

export const BOTTOM_LEVEL = 255;
const HEX_32 = /^[0-9a-f]{64}$/;
const ID = /^[0-9a-f]{16}$/;
/** As `Date.toISOString` writes it: what rules about ages go by. */
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z$/;

export function manifestKey(manifest: Pick<Manifest, 'chain' | 'seq' | 'id'>): string {
  return new ChainKeys(manifest.chain).checkpoint(manifest.seq, manifest.id);
}

/** @throws VM_UNSUPPORTED for more than could be read back */
export function encodeManifest(manifest: Manifest): Uint8Array {
  const { layout, ...rest } = manifest;
  const regions = layout.regions.map(({ id, sizeBytes }) => ({ id, sizeBytes }));
  const value = {
    format: FORMAT_NAME,
    version: FORMAT_VERSION,
    requires: featuresOf(manifest),
    ...rest,
    disks: manifest.disks.map(diskEntry),
    layout: regions,
  };
  const bytes = sealJson(value as unknown as JsonObject);
  if (bytes.length > MAX_SEALED_BYTES) throw tooLong(bytes.length);
  return bytes;
}

function tooLong(sizeBytes: number): CheckpointError {
  return new CheckpointError(
    'VM_UNSUPPORTED',
    `the record of this checkpoint would have ${sizeBytes} bytes, at most ${MAX_SEALED_BYTES} are possible`,
    {
      hint: 'how the VM was started and its disks are in it: is the command line of its process the real one?',
    },
  );
}

/** What a program that does not know it would restore wrongly. */
function featuresOf({ frozen, disks }: Manifest): readonly string[] {
  return [
    ...(frozen === undefined ? [] : [FROZEN_GUEST_FEATURE]),
    ...new Set(disks.flatMap(({ feature }) => feature ?? [])),
  ];
}

/** @throws REPO_DAMAGED, REPO_VERSION */
export function decodeManifest(key: string, chain: string, bytes: Uint8Array): Manifest {
  const json = new JsonFields(key, openSealedJson(key, bytes));
  json.oneOf('format', [FORMAT_NAME]);
  const requires = json.texts('requires');
  checkVersion(
    key,
    json.count('version'),
    requires.filter((feature) => !isDiskFeature(feature)),
  );
  const manifest: Manifest = {
    id: json.matching('id', ID),
    seq: json.count('seq', 2 ** 32 - 1, 1),
    chain: json.text('chain'),
    vmName: json.text('vmName'),
    parentId: json.textOrNull('parentId'),
    kind: json.oneOf('kind', ['base', 'incremental']),
    time: readTime(json),
    hypervisor: json.text('hypervisor'),
    identity: readIdentity(json.fields('identity')),
    machine: json.object('machine'),
    layout: readLayout(json),
    runState: json.text('runState'),
    packs: json.list('packs', readPack),
    ...(json.has('regrouped') ? { regrouped: readRegrouped(json.fields('regrouped')) } : {}),
    segments: json.list('segments', readSegment),
    deviceState: readDeviceState(json.fieldsOrNull('deviceState')),
    disks: json.list('disks', (disk) => readDiskEntry(disk, requires)),
    ...(json.has('frozen') ? { frozen: readFrozenGuest(json.fields('frozen')) } : {}),
    ...(json.has('forkedFrom') ? { forkedFrom: readForkOrigin(json.fields('forkedFrom')) } : {}),
    ...(json.has('hostSeal') ? { hostSeal: json.matching('hostSeal', HEX_32) } : {}),
    maxDepth: json.count('maxDepth', MAX_DELTA_DEPTH),
    storedBytes: json.count('storedBytes'),
    stats: json.object('stats'),
  };
  if (manifest.id !== idOfKey(key) || manifest.seq !== seqOfKey(key) || manifest.chain !== chain) {
    throw damaged(key, 'manifest of another checkpoint');
  }
  return manifest;
}

function readTime(json: JsonFields): string {
  const time = json.matching('time', TIME);
  return Number.isNaN(Date.parse(time)) ? json.wrong('time', 'a moment') : time;
}

function readIdentity(json: JsonFields): VmIdentity {
  return {
    hypervisor: json.text('hypervisor'),
    name: json.text('name'),
    uuid: json.text('uuid'),
    machineType: json.text('machineType'),
    instance: json.text('instance'),
  };
}

function readLayout(json: JsonFields): MemoryLayout {
  const regions = json.list('layout', (region) => ({
    id: region.text('id'),
    sizeBytes: region.count('sizeBytes'),
  }));
  if (regions.some(({ sizeBytes }) => sizeBytes === 0 || sizeBytes % PAGE_SIZE_BYTES !== 0)) {
    json.wrong('layout', 'made of whole pages');
  }
  if (new Set(regions.map(({ id }) => id)).size !== regions.length)
    json.wrong('layout', 'made of distinct regions');
  const layout = layOut(regions);
  return layout.pageSpan <= MAX_PAGE_SPAN ? layout : json.wrong('layout', 'within the space of page indexes');
}

function readPack(json: JsonFields): PackEntry {
  return {
    seq: json.count('seq', MAX_PACK_SEQ, 1),
    sizeBytes: json.count('sizeBytes'),
    frameCount: json.count('frameCount', MAX_FRAMES_PER_PACK, 1),
    directorySha256: json.matching('directorySha256', HEX_32),
  };
}

function readRegrouped(json: JsonFields): RegroupedEntry {
  return { pack: json.count('pack', MAX_PACK_SEQ, 1), pageCount: json.count('pageCount', MAX_PAGE_SPAN) };
}

function readSegment(json: JsonFields): SegmentEntry {
  return {
    seq: json.count('seq', 2 ** 32 - 1, 1),
    level: json.count('level', BOTTOM_LEVEL),
    entryCount: json.count('entryCount', MAX_PAGE_SPAN),
    sizeBytes: json.count('sizeBytes'),
    directorySha256: json.matching('directorySha256', HEX_32),
  };
}

function readDeviceState(json: JsonFields | null): DeviceStateEntry | null {
  if (json === null) return null;
  return {
    pack: json.count('pack', MAX_PACK_SEQ, 1),
    frame: json.count('frame', MAX_FRAMES_PER_PACK - 1),
    sizeBytes: json.count('sizeBytes'),
    sha256: json.matching('sha256', HEX_32),
  };
}

function readFrozenGuest(json: JsonFields): FrozenGuest {
  return { fileSystemCount: json.count('fileSystemCount', 2 ** 32 - 1, 1) };
}

function readForkOrigin(json: JsonFields): ForkOrigin {
  return {
    repositoryId: json.text('repositoryId'),
    chain: json.text('chain'),
    checkpointId: json.matching('checkpointId', ID),
  };
}
