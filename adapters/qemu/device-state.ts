/**
 * The state of all devices, as QEMU itself serialises it: `xen-save-devices-state` (in every build, Xen or
 * not), which writes the migration stream's device sections and no RAM. 2 to 5 ms in the pause for 60 to 214
 * KB.
 *
 * It goes to an anonymous file in memory whose write end was passed to QEMU beforehand (`add-fd`): the state
 * never gets a name in a file system, and a QEMU that runs as another user, in a mount namespace or under a
 * sandbox can write it. A connection that ends takes the passed descriptor along.
 */

import { closeSync, constants, ftruncateSync, fstatSync, openSync, readSync } from 'node:fs';

import { CheckpointError } from '../../src/errors.js';
import { libc } from '../../src/ffi/libc.js';
import { createMemoryFile } from '../../src/ffi/memory-file.js';
import { refuseHugeState } from '../../src/hypervisor/device-state.js';
import type { Monitor } from './monitor.js';
import { asObject } from './qmp-json.js';

const SEEK_SET = 0;
/** be32 "QEVM", be32 version 3: what every migration stream starts with. */
const STREAM_MAGIC = Buffer.from('5145564d00000003', 'hex');

export class DeviceState {
  readonly #monitor: Monitor;
  readonly #memory: number;
  /** Same memory, open for writing only: QEMU matches the access mode exactly. */
  readonly #writeEnd: number;
  readonly #fdset: number;
  #saved = false;

  private constructor(monitor: Monitor, memory: number, writeEnd: number, fdset: number) {
    this.#monitor = monitor;
    this.#memory = memory;
    this.#writeEnd = writeEnd;
    this.#fdset = fdset;
  }

  /** @throws FFI_FAILED, QMP_COMMAND, QMP_PROTOCOL, VM_GONE */
  static async open(monitor: Monitor): Promise<DeviceState> {
    const memory = createMemoryFile('cairn-device-state');
    let writeEnd: number | undefined;
    try {
      writeEnd = openSync(`/proc/self/fd/${memory}`, constants.O_WRONLY);
      const added = await monitor.execute('add-fd', { opaque: 'cairn' }, { passDescriptor: writeEnd });
      const fdset = asObject(added)['fdset-id'];
      // Another number than QEMU's would name a descriptor of somebody else.
      if (typeof fdset !== 'number' || !Number.isSafeInteger(fdset)) {
        throw new CheckpointError('QMP_PROTOCOL', 'add-fd was answered without the number of a descriptor');
      }
      return new DeviceState(monitor, memory, writeEnd, fdset);
    } catch (error) {
      if (writeEnd !== undefined) closeSync(writeEnd);
      closeSync(memory);
      throw error;
    }
  }

  /** @throws QMP_COMMAND, QMP_TIMEOUT, VM_GONE */
  async save(): Promise<void> {
    this.#saved = false;
    // QEMU writes through a duplicate, which shares its position with ours.
    ftruncateSync(this.#writeEnd, 0);
    libc().lseek(this.#writeEnd, 0, SEEK_SET);
    // live=false: with the default, QEMU 7.2 would give up its disks as at the end of a migration.
    await this.#monitor.execute('xen-save-devices-state', {
      filename: `/dev/fdset/${this.#fdset}`,
      live: false,
    });
    this.#saved = true;
  }

  /**
   * Caller owns the bytes.
   * @throws VM_STATE when nothing was saved, VM_UNSUPPORTED above `MAX_DEVICE_STATE_BYTES`, STREAM_MALFORMED
   *   when it is not a device state
   */
  take(): Uint8Array {
    if (!this.#saved) throw new CheckpointError('VM_STATE', 'no device state has been saved');
    this.#saved = false;
    const { size } = fstatSync(this.#memory);
    refuseHugeState(size);
    const bytes = new Uint8Array(size);
    for (let at = 0; at < bytes.length;) {
      const read = readSync(this.#memory, bytes, at, bytes.length - at, at);
      if (read === 0) break;
      at += read;
    }
    ftruncateSync(this.#writeEnd, 0);
    if (Buffer.compare(bytes.subarray(0, STREAM_MAGIC.length), STREAM_MAGIC) !== 0) {
      throw new CheckpointError('STREAM_MALFORMED', 'what QEMU saved is not a device state', {
        detail: { sizeBytes: bytes.length },
      });
    }
    return bytes;
  }

  async close(): Promise<void> {
    try {
      await this.#monitor.execute('remove-fd', { 'fdset-id': this.#fdset });
    } catch {
      // The VM has ended, or the connection: the descriptor went with it.
    }
    closeSync(this.#writeEnd);
    closeSync(this.#memory);
  }
}
