/**
 * Objects (-object, object-add) that came or went while QEMU ran, and settings of objects that can be changed then.
 *
 * Most objects do nothing until a device is given one, and a device that was plugged is refused by itself: those are
 * compared that act by themselves. Backup tools add and remove others (secrets, TLS credentials) all the time.
 */

import { CheckpointError, isCheckpointError } from '../../../src/errors.js';
import type { Json, JsonObject } from '../../../src/types.js';
import type { QemuOption } from '../../disks/qcow2/command-line.js';
import { fieldOf } from '../../disks/qcow2/option-fields.js';
import type { Monitor } from '../../qemu/monitor.js';
import { asArray, asObject, asText } from '../../qemu/qmp-json.js';

const CONTAINER = '/objects';
/** All filters of packets but filter-dump, which only listens. */
const ACTING =
  /^(?:filter-(?!dump$)|colo-compare$|dbus-vmstate$|input-linux$|input-barrier$|can-host-socketcan$)/;
/** What of an object is recorded, and set again. */
const SETTINGS: ReadonlyMap<string, readonly string[]> = new Map([
  [
    'iothread',
    ['poll-max-ns', 'poll-grow', 'poll-shrink', 'aio-max-batch', 'thread-pool-max', 'thread-pool-min'],
  ],
  ['throttle-group', ['limits']],
]);

/** An object whose settings a manifest holds. */
export interface PresentObject {
  readonly id: string;
  /** Its QOM type. */
  readonly type: string;
  /** By the name of the property. */
  readonly settings: JsonObject;
}

interface ObjectsPicture {
  readonly objects: readonly PresentObject[];
  /** In words for the operator. */
  readonly problems: readonly string[];
}

/** @throws VM_GONE, QMP_TIMEOUT */
export async function presentObjects(
  monitor: Monitor,
  options: readonly QemuOption[],
): Promise<ObjectsPicture> {
  const types = await listObjects(monitor);
  const objects = await Promise.all(
    [...types].flatMap(([id, type]) => {
      const properties = SETTINGS.get(type);
      return properties === undefined ? [] : [settingsOf(monitor, id, type, properties)];
    }),
  );
  return { objects, problems: changedObjects(types, options, await throttledBy(monitor)) };
}

/** QOM types by id. */
async function listObjects(monitor: Monitor): Promise<ReadonlyMap<string, string>> {
  return new Map(
    asArray(await unlessRefused(monitor.execute('qom-list', { path: CONTAINER }))).flatMap(
      ({ name, type }) => {
        const child = /^child<(.+)>$/.exec(asText(type))?.[1];
        return child === undefined ? [] : [[asText(name), child] as const];
      },
    ),
  );
}

/** Throttle groups that disks are named by. */
async function throttledBy(monitor: Monitor): Promise<ReadonlySet<string>> {
  const names = asArray(await monitor.execute('query-block')).map(({ inserted }) =>
    asText(asObject(inserted).file),
  );
  return new Set(
    names.flatMap((name) => [...name.matchAll(/"throttle-group": "([^"]*)"/g)].map(([, group]) => group!)),
  );
}

function changedObjects(
  types: ReadonlyMap<string, string>,
  options: readonly QemuOption[],
  groups: ReadonlySet<string>,
): readonly string[] {
  // A configuration file may hold objects as well.
  if (options.some(({ name }) => name === 'readconfig')) return [];
  const written = new Map(
    options
      .filter(({ name }) => name === 'object')
      .map(({ value = '' }) => [fieldOf(value, 'id') ?? '', fieldOf(value, 'qom-type', 'qom-type') ?? '']),
  );
  const added = [...types]
    .filter(([id, type]) => !written.has(id) && (ACTING.test(type) || groups.has(id)))
    .map(([id, type]) => `${type} (${id}) was added while it ran`);
  const removed = [...written]
    .filter(([id, type]) => ACTING.test(type) && !types.has(id))
    .map(([id, type]) => `${type} (${id}) was removed`);
  return [...added, ...removed];
}

async function settingsOf(
  monitor: Monitor,
  id: string,
  type: string,
  properties: readonly string[],
): Promise<PresentObject> {
  const values = await Promise.all(properties.map((property) => settingOf(monitor, id, property)));
  return {
    id,
    type,
    settings: Object.fromEntries(
      properties.flatMap((property, i) => (values[i] === undefined ? [] : [[property, values[i]]])),
    ),
  };
}

async function settingOf(monitor: Monitor, id: string, property: string): Promise<Json | undefined> {
  return unlessRefused(monitor.execute('qom-get', { path: `${CONTAINER}/${id}`, property }));
}

async function unlessRefused(reply: Promise<Json>): Promise<Json | undefined> {
  try {
    return await reply;
  } catch (error) {
    if (isCheckpointError(error, 'QMP_COMMAND')) return undefined;
    throw error;
  }
}

/**
 * Sets in the new QEMU what the checkpoint has recorded. An object that it does not have is left: what used it is
 * compared elsewhere.
 * @throws QMP_COMMAND, VM_GONE
 */
export async function applySettings(monitor: Monitor, objects: readonly PresentObject[]): Promise<void> {
  const types = await listObjects(monitor);
  for (const { id, type, settings } of objects) {
    if (types.get(id) !== type) continue;
    const set = async (property: string, value: Json): Promise<void> => {
      const now = await settingOf(monitor, id, property);
      if (now === undefined || isSame(now, value)) return;
      await monitor.execute('qom-set', { path: `${CONTAINER}/${id}`, property, value });
    };
    const known = SETTINGS.get(type) ?? [];
    const wanted = Object.entries(settings).filter(([property]) => known.includes(property));
    // A lower bound may not be above the upper one on the way, whichever is set first.
    for (const [property, value] of wanted) await set(property, value).catch(unlessCommand);
    for (const [property, value] of wanted) await set(property, value);
  }
}

function unlessCommand(error: unknown): void {
  if (!isCheckpointError(error, 'QMP_COMMAND')) throw error;
}

function isSame(one: Json, other: Json): boolean {
  const [a, b] = [asObject(one), asObject(other)];
  const keys = Object.keys(a);
  if (keys.length === 0) return one === other;
  return keys.length === Object.keys(b).length && keys.every((key) => a[key] === b[key]);
}

/** What a manifest says of objects. @throws RESTORE_FAILED for what no checkpoint has written */
export function readPresentObjects(record: Json | undefined): readonly PresentObject[] {
  if (record === undefined) return [];
  if (Array.isArray(record) && record.every(isPresentObject)) return record;
  throw new CheckpointError(
    'RESTORE_FAILED',
    'what the checkpoint says of the objects of its VM is malformed',
    {
      hint: 'start a QEMU with the same devices and -incoming yourself and name its address with --to',
    },
  );
}

function isPresentObject(one: unknown): one is PresentObject {
  const { id, type, settings } = asObject(one as Json);
  return (
    typeof id === 'string' &&
    typeof type === 'string' &&
    typeof settings === 'object' &&
    settings !== null &&
    !Array.isArray(settings) &&
    Object.values(settings).every(isSetting)
  );
}

/** A number, or numbers by name. */
function isSetting(value: Json): boolean {
  return [value, ...Object.values(asObject(value))].every(
    (each, i) =>
      Number.isSafeInteger(each) ||
      (i === 0 && typeof each === 'object' && each !== null && !Array.isArray(each)),
  );
}
