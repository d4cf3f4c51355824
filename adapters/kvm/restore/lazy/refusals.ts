/**
 * Machines whose memory is not filled while they run: what cannot be, and what nobody has proven. Found out by the command
 * line, before anything is started.
 */

import { CheckpointError } from '../../../../src/errors.js';
import { fillRateOf } from '../../../../src/hypervisor/fill-rate.js';
import type { QemuOption } from '../../../disks/qcow2/command-line.js';
import type { KvmRestoreOptions } from '../options.js';

/** Not empty: takes machines for which nobody has seen that it goes well. */
const UNPROVEN_VARIABLE = 'CAIRN_LAZY_UNPROVEN';

/** @throws VM_UNSUPPORTED naming the argument */
export function refuseLazily(options: readonly QemuOption[]): void {
  for (const { name, value = '' } of options) {
    const why = whyNot(name, value);
    if (why === undefined || (why.isUnproven && (process.env[UNPROVEN_VARIABLE] ?? '') !== '')) continue;
    throw new CheckpointError('VM_UNSUPPORTED', `no restore with --lazy: ${why.text} (-${name})`, {
      hint: 'restore it without --lazy',
      detail: { option: name },
    });
  }
}

/** @throws VM_UNSUPPORTED for a QEMU that somebody else started, USAGE */
export function refuseTarget({ target, lazy, eager, background, fillRate }: KvmRestoreOptions): void {
  if (lazy === true && eager === true)
    throw new CheckpointError('USAGE', '--lazy and --eager exclude each other');
  if (lazy !== true && (background === true || fillRate !== undefined))
    throw new CheckpointError('USAGE', '--background and --fill-rate are options of --lazy');
  fillRateOf(fillRate);
  if (lazy === true && target !== undefined) {
    throw new CheckpointError(
      'VM_UNSUPPORTED',
      `no restore with --lazy into ${target}: a page server needs the monitor of a QEMU that Cairn has started`,
      { hint: 'restore it without --lazy' },
    );
  }
}

interface Reason {
  readonly text: string;
  readonly isUnproven: boolean;
}

const unproven = (text: string): Reason => ({ text: `${text}, which nobody has proven`, isUnproven: true });

function whyNot(name: string, value: string): Reason | undefined {
  if (name === 'mem-path' || value.includes('memory-backend-file') || value.includes('memory-backend-memfd'))
    return unproven('its memory lies in a file or in shared memory');
  if (value.includes('memory-backend-ram') && /share=(?:on|yes|true)/.test(value))
    return unproven('its memory is shared');
  if (/hugetlb=(?:on|yes|true)/.test(value)) return unproven('its memory is of huge pages');
  if (name === 'mem-prealloc' || /prealloc=(?:on|yes|true)/.test(value))
    return unproven('its memory is allocated beforehand');
  if ((name === 'overcommit' || name === 'realtime') && /lock=(?:on|yes|true)|mlock=on/.test(value))
    return unproven('its memory is locked');
  if (value.includes('vhost-user')) return unproven('a vhost-user process has its memory mapped');
  if (/vhost=(?:on|yes|true)|vhost-(?:vsock|scsi|vdpa)/.test(value))
    return unproven('the kernel writes to its memory (vhost)');
  if (/virtio-mem|vfio-/.test(value))
    return { text: 'its memory cannot be asked for page by page', isUnproven: false };
  if (name === 'global' && /^(?:driver=)?migration[.,]/.test(value))
    return unproven('its command line sets how it migrates');
  const accelerator = name === 'accel' || name === 'machine' || name === 'M' ? value : '';
  if (name === 'enable-kvm' || /(?:^|accel=|accelerator=)(?:kvm|xen|hvf|whpx|nvmm)/.test(accelerator))
    return unproven('it does not run under TCG');
  return undefined;
}
