/**
 * The folder that the relative paths of a command line start from. A QEMU that became a daemon, or shut itself into a
 * folder, has gone to another one since:
 *
 *     started in /srv/web1 with -drive file=disk.qcow2 -daemonize
 *     cwd now:  /
 *     open now: /srv/web1/disk.qcow2      so it was started in /srv/web1
 *
 * Source: os_daemonize, os_setup_post and change_root of QEMU's os-posix.c.
 */

import { readdir, readlink, stat } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import {
  parseCommandLine,
  splitValue,
  unescapeCommas,
  type QemuOption,
} from '../../disks/qcow2/command-line.js';

/**
 * @param argv with the program's own name
 * @param cwd where the process is now
 * @param environment text of /proc/PID/environ; PWD is what the shell that started it was in
 * @throws VM_UNSUPPORTED when open files tell of two folders
 */
export async function startFolder(
  pid: number,
  argv: readonly string[],
  cwd: string,
  environment: string,
): Promise<string> {
  const options = parseCommandLine(argv.slice(1));
  if (!options.some(leavesItsFolder)) return cwd;
  const found = foldersOf(relativePaths(options), await openFiles(pid));
  if (found.size > 1) {
    throw new CheckpointError(
      'VM_UNSUPPORTED',
      `the command line of process ${pid} has relative paths, and it is not known from which folder: ${[...found].join(', ')}`,
      { hint: 'start QEMU with absolute paths', detail: { folders: [...found] } },
    );
  }
  const [folder] = found;
  if (folder !== undefined) return folder;
  const shellWas = /(?:^|\0)PWD=([^\0]+)/.exec(environment)?.[1] ?? '';
  return isAbsolute(shellWas) && (await isFolder(shellWas)) ? shellWas : cwd;
}

function leavesItsFolder({ name, value }: QemuOption): boolean {
  return (
    name === 'daemonize' ||
    name === 'chroot' ||
    (name === 'run-with' && splitValue(value ?? '').some((part) => part.startsWith('chroot=')))
  );
}

/** Whatever in a command line may be a relative path of a file: the values of all keys, and what stands alone. */
export function relativePaths(options: readonly QemuOption[]): ReadonlySet<string> {
  const paths = options.flatMap(({ value = '' }) =>
    [value, ...splitValue(value), ...jsonTexts(value)].map((part) =>
      unescapeCommas(part)
        .replace(/^[A-Za-z0-9._-]+=/, '')
        .replace(/^file:/, '')
        .replace(/^\.\//, ''),
    ),
  );
  return new Set(paths.filter((path) => path !== '' && !isAbsolute(path) && !path.startsWith('..')));
}

/** Texts of an option that is written as JSON. */
function jsonTexts(value: string): readonly string[] {
  if (!value.startsWith('{')) return [];
  return [...value.matchAll(/:\s*("(?:[^"\\]|\\.)*")/g)].flatMap(([, text = '""']) => {
    try {
      return [JSON.parse(text) as string];
    } catch {
      return [];
    }
  });
}

/** Folders in which some of `paths` lead to one of `files`. */
export function foldersOf(paths: ReadonlySet<string>, files: readonly string[]): ReadonlySet<string> {
  const folders = new Set<string>();
  for (const file of files) {
    for (const path of paths) {
      if (file.endsWith(`/${path}`)) folders.add(file.slice(0, -path.length - 1) || '/');
    }
  }
  return folders;
}

/** Absolute paths of the files that a process has open. Nothing where that cannot be seen. */
async function openFiles(pid: number): Promise<readonly string[]> {
  const folder = `/proc/${pid}/fd`;
  const numbers = await readdir(folder).catch(() => []);
  const links = await Promise.all(numbers.map((number) => readlink(join(folder, number)).catch(() => '')));
  return links.filter(isAbsolute).map((link) => link.replace(/ \(deleted\)$/, ''));
}

async function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}
