/**
 * Whether a VM is the one that a checkpoint was taken of, where no UUID tells. Names are no help: two machines may have
 * one by accident, and nothing at all tells two that were started by the same line one after the other.
 *
 *     the checkpoint's QEMU still runs, and is another process    another VM
 *     MAC addresses of the command line, where there are any      tell
 *     else: none of its disks, or memory of another size          another VM
 *     else                                                        the same, started again
 */

import { basename, resolve } from 'node:path';

import { isSameProcess } from '../../../src/host/process-identity.js';
import type { RecordedVm } from '../../../src/hypervisor/vm.js';
import type { JsonObject } from '../../../src/types.js';
import { parseCommandLine, type QemuOption } from '../../disks/qcow2/command-line.js';
import { fieldOf } from '../../disks/qcow2/option-fields.js';
import { diskReferences } from '../../disks/qcow2/restore-disk-options.js';

/** ROMs come and go with the version of QEMU. */
const LEAST_MEMORY_BYTES = 16 << 20;
/** What Cairn adds to the name of an image for its overlays. */
const OVERLAY_SUFFIX = /(?:\.cairn-[A-Za-z0-9-]+(?:\.qcow2)?)+$/;

/** @returns in words for the operator what tells `now` from `before`; empty for the same VM */
export async function differencesBetween(before: RecordedVm, now: RecordedVm): Promise<readonly string[]> {
  if (before.identity.uuid !== '' || now.identity.uuid !== '') return [];
  if (before.identity.instance === now.identity.instance) return [];
  const [pid = '', startTime = ''] = before.identity.instance.split(':');
  if (/^\d+$/.test(pid) && (await isSameProcess(Number(pid), startTime)))
    return [`the VM of its newest checkpoint runs as process ${pid}`];
  const [had, has] = [macsOf(before), macsOf(now)];
  if (had.join() !== has.join())
    return [`MAC addresses ${had.join(', ') || 'none'}, not ${has.join(', ') || 'none'}`];
  // Cards that were given their addresses are a machine's own: it may have got other disks and more memory since.
  return had.length > 0 ? [] : [...otherDisks(before, now), ...otherMemory(before, now)];
}

/** Those that the command line gives; QEMU gives others by position. */
function macsOf({ machine }: RecordedVm): readonly string[] {
  return optionsOf(machine)
    .filter(({ name }) => name === 'device' || name === 'nic' || name === 'net')
    .flatMap(({ value = '' }) => fieldOf(value, 'mac') ?? fieldOf(value, 'macaddr') ?? [])
    .map((mac) => mac.toLowerCase())
    .sort();
}

/** A disk may have been added or moved; all of them are another machine's. */
function otherDisks(before: RecordedVm, now: RecordedVm): readonly string[] {
  const [had, has] = [disksOf(before), disksOf(now)];
  if (had.length === 0 && has.length === 0) return [];
  if (had.some((disk) => has.includes(disk))) return [];
  return [`disks ${had.join(', ') || 'none'}, not ${has.join(', ') || 'none'}`];
}

/** By the image that the chain of overlays began with, without its folder: machines are moved. */
function disksOf({ machine }: RecordedVm): readonly string[] {
  const folder = typeof machine.cwd === 'string' ? machine.cwd : '/';
  return diskReferences(optionsOf(machine), folder)
    .filter(({ path }) => path !== '')
    .map(({ path }) => resolve(folder, path).replace(OVERLAY_SUFFIX, ''))
    .map((path) => basename(path, '.qcow2'));
}

function otherMemory(before: RecordedVm, now: RecordedVm): readonly string[] {
  const [had, has] = [memoryOf(before), memoryOf(now)];
  return had === has ? [] : [`memory ${had}, not ${has}`];
}

function memoryOf({ layout }: RecordedVm): string {
  return layout.regions
    .filter(({ sizeBytes }) => sizeBytes >= LEAST_MEMORY_BYTES)
    .map(({ id, sizeBytes }) => `${id} of ${Math.round(sizeBytes / (1 << 20))} MiB`)
    .join(' and ');
}

function optionsOf({ argv }: JsonObject): readonly QemuOption[] {
  return parseCommandLine(Array.isArray(argv) ? argv.slice(1).filter((one) => typeof one === 'string') : []);
}
