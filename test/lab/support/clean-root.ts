/** A bare Debian 12 in a folder: nothing of this host is in it but /proc and /dev, and it has no Node.js. */

import { execFile, execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { labCache, SOURCE_ROOT } from './lab-files.js';

const run = promisify(execFile);
const OUTPUT_BYTES = 64 << 20;
/** Its programs see a mount namespace of their own, so nothing stays mounted. */
const ENTER = 'mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"';

/** Makes the archive that roots are unpacked from. @returns why that cannot be done; empty when it is there */
export function whyNoCleanRoot(): string {
  const script = join(SOURCE_ROOT, 'test/lab/setup/ensure-clean-root.sh');
  const { status, stdout, stderr } = spawnSync('bash', [script, labCache()], { encoding: 'utf8' });
  process.stderr.write(stdout);
  return status === 0 ? '' : stderr.trim() || 'no clean root can be made';
}

export class CleanRoot {
  readonly dir: string;

  /** @param dir does not exist yet */
  constructor(dir: string) {
    this.dir = dir;
    for (const folder of ['proc', 'dev']) mkdirSync(join(dir, folder), { recursive: true });
    execFileSync('tar', ['-xpf', join(labCache(), 'clean-root/bookworm.tar'), '-C', dir]);
  }

  /** Runs a shell command in it, by root. @returns stdout; throws with all that it said when it fails */
  async sh(command: string): Promise<string> {
    const env = {
      PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
      LC_ALL: 'C',
      DEBIAN_FRONTEND: 'noninteractive',
      HOME: '/root',
    };
    const args = ['--mount', 'sh', '-c', ENTER, this.dir, '/bin/sh', '-ec', command];
    try {
      return (await run('unshare', args, { env, maxBuffer: OUTPUT_BYTES })).stdout;
    } catch (error) {
      const { stdout = '', stderr = '' } = error as { stdout?: string; stderr?: string };
      throw new Error(`${command}: ${stdout}${stderr}`);
    }
  }
}
