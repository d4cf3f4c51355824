/**
 * Finds the process that is a domain's QEMU: libvirt writes its id to a file, and QEMU's arguments must name
 * the domain.
 */

import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';

import { CheckpointError } from '../../src/errors.js';
import { qemuProcess, type QemuProcess } from '../qemu/peer-process.js';
import type { LibvirtDomain } from './domain.js';

/** @throws VM_UNSUPPORTED when it is not visible from here, VM_GONE, VM_PERMISSION */
export async function domainProcess(domain: LibvirtDomain): Promise<QemuProcess> {
  const what = `the domain ${domain.name}`;
  for (const pid of await candidates(domain)) {
    if (isStartedFor(await argumentsOf(pid), domain)) return qemuProcess(pid, what);
  }
  return qemuProcess(0, what);
}

/** True for the arguments that libvirt gives to QEMU: `-name guest=NAME,... -uuid UUID`. */
export function isStartedFor(
  argv: readonly string[],
  { name, uuid }: Pick<LibvirtDomain, 'name' | 'uuid'>,
): boolean {
  const valueOf = (option: string): string => argv[argv.indexOf(option) + 1] ?? '';
  // A comma in a value is written twice (QEMU's option syntax).
  const guest = `guest=${name.replaceAll(',', ',,')}`;
  const named = valueOf('-name');
  return valueOf('-uuid').toLowerCase() === uuid && (named === guest || named.startsWith(`${guest},`));
}

/**
 * The process of the file first. Other processes of this host only where the file cannot be read, as in a
 * container.
 */
async function candidates(domain: LibvirtDomain): Promise<readonly number[]> {
  const isSystem = domain.connection.uri.endsWith('/system');
  const folder = isSystem
    ? '/run/libvirt/qemu'
    : join(process.env.XDG_RUNTIME_DIR ?? `/run/user/${process.getuid?.() ?? 0}`, 'libvirt/qemu/run');
  try {
    return [Number(await readFile(join(folder, `${domain.name}.pid`), 'latin1'))];
  } catch {
    const names = await readdir('/proc').catch(() => {
      throw new CheckpointError('VM_UNSUPPORTED', 'there is no /proc');
    });
    return names.map(Number).filter((pid) => Number.isInteger(pid));
  }
}

async function argumentsOf(pid: number): Promise<readonly string[]> {
  const text = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
  return text.split('\0');
}
