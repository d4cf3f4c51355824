/**
 * A block node of QEMU with the vmstate in it: an image in anonymous memory whose descriptor QEMU was passed, so that
 * it has no name in any file system and a confined QEMU can open it. The node is writable, because going to a snapshot
 * writes the image's metadata.
 */

import { randomBytes } from 'node:crypto';
import { closeSync, writeSync } from 'node:fs';

import { CheckpointError } from '../../../src/errors.js';
import { createMemoryFile } from '../../../src/ffi/memory-file.js';
import type { Monitor } from '../../qemu/monitor.js';
import { asArray, asObject, asText } from '../../qemu/qmp-json.js';

const PREFIX = 'cairn-vmstate-';

export class VmstateNode {
  readonly name: string;
  readonly #monitor: Monitor;
  readonly #fdset: number;

  private constructor(monitor: Monitor, name: string, fdset: number) {
    this.#monitor = monitor;
    this.name = name;
    this.#fdset = fdset;
  }

  /** @throws FFI_FAILED, QMP_COMMAND, QMP_PROTOCOL, VM_GONE */
  static async open(monitor: Monitor, image: Uint8Array): Promise<VmstateNode> {
    await sweep(monitor);
    const memory = createMemoryFile('cairn-vmstate');
    let fdset: number;
    try {
      for (let at = 0; at < image.length;) at += writeSync(memory, image, at);
      const added = await monitor.execute('add-fd', { opaque: PREFIX }, { passDescriptor: memory });
      const number = asObject(added)['fdset-id'];
      if (typeof number !== 'number' || !Number.isSafeInteger(number))
        throw new CheckpointError('QMP_PROTOCOL', 'add-fd was answered without the number of a descriptor');
      fdset = number;
    } finally {
      closeSync(memory);
    }
    const node = new VmstateNode(monitor, `${PREFIX}${randomBytes(4).toString('hex')}`, fdset);
    try {
      await monitor.execute('blockdev-add', {
        driver: 'qcow2',
        'node-name': node.name,
        cache: { 'no-flush': true },
        file: {
          driver: 'file',
          filename: `/dev/fdset/${fdset}`,
          locking: 'off',
          cache: { 'no-flush': true },
        },
      });
      return node;
    } catch (error) {
      await node.close();
      throw error;
    }
  }

  /** QEMU 7.2 closes a removed descriptor only while the VM runs: so after the VM was resumed. Never throws. */
  async close(): Promise<void> {
    await remove(this.#monitor, this.name);
    // The VM may have ended, or the connection: the descriptor went with it.
    await this.#monitor.execute('remove-fd', { 'fdset-id': this.#fdset }).catch(() => undefined);
  }
}

/** What a Cairn that was killed has left. Its descriptors go with its connection and the node. */
async function sweep(monitor: Monitor): Promise<void> {
  const nodes = asArray(await monitor.execute('query-named-block-nodes', { flat: true }));
  for (const name of nodes.map((node) => asText(node['node-name'])))
    if (name.startsWith(PREFIX)) await remove(monitor, name);
}

/** A node that a load has left in use stays. */
async function remove(monitor: Monitor, name: string): Promise<void> {
  await monitor.execute('blockdev-del', { 'node-name': name }).catch(() => undefined);
}
