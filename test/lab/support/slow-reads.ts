/** A block device so slow for one process that its direct reads can be caught in flight: I/O limits of control groups. */

import {
  existsSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  rmdirSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';

const ROOT = '/sys/fs/cgroup';
/** A read of 64 KiB takes half a second, less the rest before it. */
const BYTES_PER_SECOND = 128 << 10;

/**
 * Limits what process `pid` reads from the device that holds `path`. To be removed when the process has ended.
 * @returns undefined when this machine cannot do it
 */
export function slowReads(pid: number, path: string): { remove(): void } | undefined {
  const device = wholeDiskOf(path);
  if (device === undefined || process.getuid?.() !== 0) return undefined;
  const folder = join(existsSync(`${ROOT}/blkio`) ? `${ROOT}/blkio` : ROOT, `cairn-lab-${pid}`);
  const [file, text] = existsSync(`${ROOT}/blkio`)
    ? ['blkio.throttle.read_bps_device', `${device} ${BYTES_PER_SECOND}`]
    : ['io.max', `${device} rbps=${BYTES_PER_SECOND}`];
  try {
    if (file === 'io.max') writeFileSync(`${ROOT}/cgroup.subtree_control`, '+io');
    mkdirSync(folder);
    writeFileSync(join(folder, file), text);
    writeFileSync(join(folder, 'cgroup.procs'), `${pid}`);
    return { remove: () => rmdirSync(folder) };
  } catch {
    if (existsSync(folder)) rmdirSync(folder);
    return undefined;
  }
}

/** Major and minor number; the limits do not take partitions. */
function wholeDiskOf(path: string): string | undefined {
  const { dev } = statSync(path);
  const folder = `/sys/dev/block/${(dev >> 8) & 0xfff}:${(dev & 0xff) | ((dev >> 12) & 0xfff00)}`;
  if (!existsSync(folder)) return undefined;
  const real = realpathSync(folder);
  const disk = existsSync(join(real, 'partition')) ? dirname(real) : real;
  return readFileSync(join(disk, 'dev'), 'latin1').trim();
}
