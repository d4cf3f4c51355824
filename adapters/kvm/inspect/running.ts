/** QEMUs of this host that have a QMP socket, by the command lines that /proc shows. */

import { readdir, readlink } from 'node:fs/promises';
import { resolve } from 'node:path';

import { readProcessText } from '../../../src/host/process-text.js';
import type { RunningVm } from '../../../src/hypervisor/hypervisor.js';
import { parseCommandLine } from '../../disks/qcow2/command-line.js';
import { qmpPathOf } from '../restore/argv.js';
import { nameIn } from '../restore/renamed.js';

const QEMU = /(?:^|\/)(?:qemu-system-[^/]+|qemu-kvm|kvm)$/;

/** One for each QMP socket: which of them is free, only a connection would show. libvirt hands its own over as a descriptor. */
export async function runningQemus(): Promise<readonly RunningVm[]> {
  const pids = (await readdir('/proc').catch(() => [])).filter((entry) => /^\d+$/.test(entry));
  return (await Promise.all(pids.map(socketsOf))).flat();
}

async function socketsOf(pid: string): Promise<readonly RunningVm[]> {
  const text = await readProcessText(`/proc/${pid}/cmdline`).catch(() => '');
  const [program = '', ...argv] = text.replace(/\0$/, '').split('\0');
  if (!QEMU.test(program)) return [];
  const options = parseCommandLine(argv);
  const name = nameIn(options);
  const cwd = await readlink(`/proc/${pid}/cwd`).catch(() => '/');
  return options.flatMap((option) => {
    const path = qmpPathOf(option, options);
    return path === undefined ? [] : [{ address: `qmp:${resolve(cwd, path)}`, name, instance: `kvm:${pid}` }];
  });
}
