/**
 * Machines that are not forked: those whose memory a template cannot stand for, those that would share with
 * each other what only one can have, and those of which nobody has seen that it goes well. Found out by the
 * command line.
 */

import type { CheckpointError } from '../../../src/errors.js';
import type { QemuOption } from '../../disks/qcow2/command-line.js';
import { fieldOf, isOn } from '../../disks/qcow2/option-fields.js';
import { refused } from './refused.js';

/** Not empty: takes machines for which nobody has seen that it goes well. */
const UNPROVEN_VARIABLE = 'CAIRN_FORK_UNPROVEN';

interface Reason {
  readonly reason: string;
  readonly text: string;
  readonly isUnproven?: true;
}

/** @throws FORK_REFUSED naming the argument */
export function refuseMachine(options: readonly QemuOption[]): void {
  for (const each of options) {
    const why = whyNot(each);
    if (why === undefined) continue;
    if (why.isUnproven === true && (process.env[UNPROVEN_VARIABLE] ?? '') !== '') continue;
    throw asError(why, each);
  }
}

function asError({ reason, text, isUnproven }: Reason, { name, value = '' }: QemuOption): CheckpointError {
  const more = isUnproven === true ? ', which nobody has proven' : '';
  return refused(reason, `${text}${more} (-${name} ${value})`, {
    hint: 'restore it: cairn restore --new-name NAME starts one beside the original',
    detail: { argument: `-${name} ${value}`.trim() },
  });
}

function whyNot({ name, value = '' }: QemuOption): Reason | undefined {
  return ofMemory(name, value) ?? ofSharers(value) ?? ofAccelerator(name, value);
}

function ofMemory(name: string, value: string): Reason | undefined {
  const type = name === 'object' ? (fieldOf(value, 'qom-type', 'qom-type') ?? '') : '';
  if (name === 'mem-path' || type === 'memory-backend-file')
    return { reason: 'FILE_MEMORY', text: 'its memory lies in a file' };
  if (/^memory-backend-(?!ram$|memfd$)/.test(type))
    return { reason: 'OTHER_MEMORY', text: `its memory is a ${type}` };
  if (type.startsWith('memory-backend-') && isOn(value, 'hugetlb'))
    return { reason: 'HUGE_PAGES', text: 'its memory is of huge pages' };
  if (name === 'mem-prealloc' || (type.startsWith('memory-backend-') && isOn(value, 'prealloc')))
    return {
      reason: 'PREALLOCATED',
      text: 'its memory is allocated beforehand, which would copy all of it in each child',
    };
  if ((name === 'overcommit' || name === 'realtime') && (isOn(value, 'mem-lock') || isOn(value, 'mlock')))
    return {
      reason: 'LOCKED_MEMORY',
      text: 'its memory is locked, which would copy all of it in each child',
    };
  if (name === 'readconfig')
    return { reason: 'CONFIG_FILE', text: 'a part of it is described in a file (-readconfig)' };
  return undefined;
}

function ofSharers(value: string): Reason | undefined {
  if (value.includes('vhost-user'))
    return { reason: 'VHOST_USER', text: 'a vhost-user process needs its memory to be shared' };
  if (/vhost=(?:on|yes|true)|vhost-(?:vsock|scsi|vdpa)/.test(value))
    return { reason: 'VHOST', text: 'the kernel writes to its memory (vhost)', isUnproven: true };
  if (/vfio-|virtio-mem|virtio-pmem|ivshmem|vhost-vdpa|x-remote/.test(value))
    return { reason: 'DEVICE', text: 'one of its devices cannot be had twice' };
  return undefined;
}

function ofAccelerator(name: string, value: string): Reason | undefined {
  const accelerator = name === 'accel' || name === 'machine' ? value : '';
  const isOther =
    name === 'enable-kvm' || /(?:^|accel=|accelerator=)(?:kvm|xen|hvf|whpx|nvmm)/.test(accelerator);
  return isOther ? { reason: 'ACCELERATOR', text: 'it does not run under TCG', isUnproven: true } : undefined;
}
