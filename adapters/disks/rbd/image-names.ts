/**
 * How QEMU names a disk of its `rbd` block driver (BlockdevOptionsRbd of qapi/block-core.json), and how Cairn
 * does.
 */

import { isAbsolute } from 'node:path';

import type { Json, JsonObject } from '../../../src/types.js';

/** Where an image is, and how `rbd` gets there. Empty texts stand for Ceph's own defaults. */
export interface RbdLocation {
  readonly pool: string;
  readonly namespace: string;
  readonly name: string;
  /** Absolute path of a ceph.conf. */
  readonly conf: string;
  /** Name of the user without `client.`. */
  readonly user: string;
  /** `host:port`, with commas between. */
  readonly monitors: string;
}

/**
 * An option that starts with a dash, or a name of several parts, is none of ours. What a repository holds is
 * checked as well.
 */
const NAME = /^[^-/@\s\0][^/@\s\0]*$/;

/**
 * @param filename of `query-block`: `json:{"driver": "raw", "file": {"driver": "rbd", ...}}`
 * @returns undefined when it is no image of RBD, `whyNot` when it is one that is not taken
 */
export function locationIn(filename: string): RbdLocation | { readonly whyNot: string } | undefined {
  if (filename.startsWith('rbd:')) return { whyNot: 'QEMU does not say where in Ceph the image is' };
  const top = parsed(filename);
  const node = top === undefined ? undefined : rbdNode(top);
  if (top === undefined || node === undefined) return undefined;
  const isPlain = top === node || (text(top, 'driver') === 'raw' && top.file === node);
  if (!isPlain) return { whyNot: `${text(top, 'driver')} on an RBD image was not tested` };
  const location = {
    pool: text(node, 'pool'),
    namespace: text(node, 'namespace'),
    name: text(node, 'image'),
    conf: text(node, 'conf'),
    user: text(node, 'user'),
    monitors: monitorsOf(node),
  };
  if (text(node, 'snapshot') !== '') return { whyNot: 'it is a snapshot itself' };
  if (!isLocation(location)) return { whyNot: 'a name of its pool or image cannot be passed on' };
  if (location.conf !== '' && !isAbsolute(location.conf))
    return { whyNot: `the path of its ceph.conf, ${location.conf}, is relative to QEMU's folder` };
  return location;
}

/** Whether the names can be arguments of `rbd`. */
export function isLocation({ pool, namespace, name, user, monitors }: RbdLocation): boolean {
  const optional = [namespace, user, monitors].filter((one) => one !== '');
  return [pool, name, ...optional].every((one) => NAME.test(one));
}

/** `rbd:POOL/[NAMESPACE/]IMAGE` */
export function nameOfImage({
  pool,
  namespace,
  name,
}: Omit<RbdLocation, 'conf' | 'user' | 'monitors'>): string {
  return `rbd:${[pool, ...(namespace === '' ? [] : [namespace]), name].join('/')}`;
}

function parsed(filename: string): JsonObject | undefined {
  if (!filename.startsWith('json:')) return undefined;
  try {
    return asObject(JSON.parse(filename.slice('json:'.length)) as Json);
  } catch {
    // QEMU cuts names off that are too long for it.
    return undefined;
  }
}

/**
 * The node that reads and writes the image, below formats and filters. What lies under an overlay (`backing`)
 * is not the disk.
 */
function rbdNode(node: JsonObject): JsonObject | undefined {
  if (text(node, 'driver') === 'rbd') return node;
  const file = asObject(node.file);
  return file === undefined ? undefined : rbdNode(file);
}

/** Reads the monitors, which come as a list, or flattened into server.0.host and so on. */
function monitorsOf(node: JsonObject): string {
  const list = Array.isArray(node.server) ? node.server.map(asObject) : [];
  for (let i = 0; text(node, `server.${i}.host`) !== ''; i++)
    list.push({ host: node[`server.${i}.host`]!, port: node[`server.${i}.port`] ?? '' });
  return list
    .filter((server) => server !== undefined)
    .map((server) => {
      const host = text(server, 'host');
      const bracketed = host.includes(':') && !host.startsWith('[') ? `[${host}]` : host;
      return [bracketed, text(server, 'port')].filter((part) => part !== '').join(':');
    })
    .join(',');
}

function text(node: JsonObject, key: string): string {
  const value = node[key];
  return typeof value === 'string' ? value : '';
}

function asObject(value: Json | undefined): JsonObject | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as JsonObject)
    : undefined;
}
