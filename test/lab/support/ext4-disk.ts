/** A disk with an ext4, made outside of the guest, whose superblock says whether it was at rest. */

import { execFileSync } from 'node:child_process';
import { rmSync } from 'node:fs';

/** Counts on /mnt, each number written and flushed, in the background. */
export const WRITER =
  '(n=0; while :; do n=$((n + 1)); echo $n >/mnt/new; mv /mnt/new /mnt/count; sync; usleep 20000; done) </dev/null >/dev/null 2>&1 & ' +
  'until [ -s /mnt/count ]; do usleep 20000; done';

export function makeExt4(path: string): void {
  const raw = `${path}.raw`;
  execFileSync('truncate', ['-s', '64M', raw]);
  execFileSync('/sbin/mkfs.ext4', ['-q', '-F', raw]);
  execFileSync('qemu-img', ['convert', '-O', 'qcow2', raw, path]);
  rmSync(raw);
}

/** True when a mount would have to replay the journal: the file system was in use, and not frozen. */
export function needsRecovery(image: string): boolean {
  const raw = `${image}.looked-at`;
  execFileSync('qemu-img', ['convert', '-U', '-O', 'raw', image, raw]);
  try {
    const features = execFileSync('/sbin/dumpe2fs', ['-h', raw], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return features.includes('needs_recovery');
  } finally {
    rmSync(raw);
  }
}
