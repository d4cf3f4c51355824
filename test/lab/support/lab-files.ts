/** Where the lab's files are: what `setup/ensure.sh` made, and scratch folders for machines. */

import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export type QemuVersion = '7.2' | '10.0';

/** Of the source tree, seen from dist/test/lab/support. */
export const SOURCE_ROOT = fileURLToPath(new URL('../../../../', import.meta.url));

export function labCache(): string {
  const { CAIRN_CACHE, XDG_CACHE_HOME } = process.env;
  return join(CAIRN_CACHE ?? join(XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'cairn'), 'lab');
}

/** Makes what is missing: a test may be run on its own. */
export function ensureLab(): void {
  const cache = labCache();
  if (existsSync(join(cache, 'guest/.built-from')) && existsSync(join(cache, 'qemu-10/.complete'))) return;
  execFileSync('bash', [join(SOURCE_ROOT, 'test/lab/setup/ensure.sh'), '--with-qemu-10'], {
    stdio: 'inherit',
  });
}

/**
 * Has machines start from a copy of the lab's files that every user can read: the lab's own may lie in somebody's home.
 * @param folder does not exist yet; who looks below it must be let in
 * @returns undoes it; the copy stays
 */
export function shareLab(folder: string): () => void {
  ensureLab();
  for (const part of ['guest', 'qemu-10'])
    cpSync(join(labCache(), part), join(folder, 'lab', part), { recursive: true });
  const former = process.env.CAIRN_CACHE;
  process.env.CAIRN_CACHE = folder;
  return () => {
    if (former === undefined) delete process.env.CAIRN_CACHE;
    else process.env.CAIRN_CACHE = former;
  };
}

/** Makes the guest that has 9p (`LabDevice` share). @returns why that cannot be done; empty when it is there */
export function whyNo9pGuest(): string {
  const script = join(SOURCE_ROOT, 'test/lab/setup/ensure.sh');
  const { status, stdout, stderr } = spawnSync('bash', [script, '--with-9p'], { encoding: 'utf8' });
  process.stderr.write(stdout);
  return status === 0 ? '' : stderr.trim() || 'no guest with 9p can be made';
}

/** Installs the Debian packages that are missing, and says so. @returns why that cannot be done; empty when all are there */
export function whyNoPackages(...names: readonly string[]): string {
  const script = join(SOURCE_ROOT, 'test/lab/setup/ensure-packages.sh');
  const { status, stdout, stderr } = spawnSync('bash', [script, ...names], { encoding: 'utf8' });
  process.stderr.write(stdout);
  return status === 0 ? '' : stderr.trim() || `no Debian packages ${names.join(' ')}`;
}

export interface QemuProgram {
  readonly path: string;
  /** Its own firmware, not that of another installed version. */
  readonly firmwareArgs: readonly string[];
  readonly env: NodeJS.ProcessEnv;
}

/** @param root where the lab's second QEMU lies */
export function qemuProgram(version: QemuVersion, root = join(labCache(), 'qemu-10')): QemuProgram {
  if (version === '7.2') return { path: '/usr/bin/qemu-system-x86_64', firmwareArgs: [], env: process.env };
  return {
    path: join(root, 'usr/bin/qemu-system-x86_64'),
    firmwareArgs: ['usr/share/qemu', 'usr/share/seabios', 'usr/lib/ipxe/qemu'].flatMap((folder) => [
      '-L',
      join(root, folder),
    ]),
    env: { ...process.env, LD_LIBRARY_PATH: join(root, 'usr/lib/x86_64-linux-gnu') },
  };
}

/**
 * What the guest's kernel is told. Without the tests of its ciphers and its certificates, which nothing here uses, a boot is a
 * seventh less work for an emulated processor.
 */
export const GUEST_COMMAND_LINE =
  'console=ttyS0 quiet panic=1 mitigations=off cryptomgr.notests initcall_blacklist=load_system_certificate_list';

/** A fresh folder on the disk (not a tmpfs: disk images go there). */
export function scratchDir(name: string): string {
  // Short: paths of sockets begin with it.
  return mkdtempSync(join(tmpdir(), `${name}-`));
}
