/** qemu-img as a restore needs it: look at an image, roll it back, put an overlay on it. */

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

import { CheckpointError, describeError, systemErrorCode } from '../../../src/errors.js';

export interface ImageInfo {
  readonly format: string;
  readonly snapshotNames: readonly string[];
  /** Absolute; undefined for an image that stands alone. */
  readonly backingPath: string | undefined;
}

const run = promisify(execFile);
const MAX_OUTPUT_BYTES = 16 * 1024 * 1024;
const LOCKED = /Failed to get ".*" lock|another process using the image/i;

/**
 * @param format undefined has the format guessed from the content, which only what QEMU itself guessed may be: a guest
 *   can write into a raw disk what looks like another format.
 */
export async function imageInfo(path: string, format?: string): Promise<ImageInfo> {
  const formatArguments = format === undefined ? [] : ['-f', format];
  const text = await qemuImg(['info', '-U', '--output=json', ...formatArguments, path], `reading ${path}`);
  const info = JSON.parse(text) as {
    format?: string;
    snapshots?: readonly { name?: string }[];
    'full-backing-filename'?: string;
    'backing-filename'?: string;
  };
  return {
    format: info.format ?? 'raw',
    snapshotNames: (info.snapshots ?? []).map(({ name }) => name ?? ''),
    backingPath: info['full-backing-filename'] ?? info['backing-filename'],
  };
}

/** Puts the image back to an internal snapshot; the snapshot stays. @throws RESTORE_TARGET_BUSY, RESTORE_FAILED */
export async function applySnapshot(path: string, name: string): Promise<void> {
  await qemuImg(['snapshot', '-a', name, path], `rolling ${path} back to the snapshot ${name}`);
}

/** Removes an internal snapshot. QEMU locks its images, so that of a running VM stays as it is. @throws RESTORE_TARGET_BUSY, RESTORE_FAILED */
export async function deleteSnapshot(path: string, name: string): Promise<void> {
  await qemuImg(['snapshot', '-d', name, path], `deleting the snapshot ${name} of ${path}`);
}

/** Makes `overlay`, over what stands there. @throws RESTORE_FAILED */
export async function createOverlay(overlay: string, base: string, baseFormat: string): Promise<void> {
  await qemuImg(
    ['create', '-q', '-f', 'qcow2', '-b', base, '-F', baseFormat, overlay],
    `creating ${overlay}`,
  );
}

async function qemuImg(args: readonly string[], step: string): Promise<string> {
  try {
    const { stdout } = await run('qemu-img', args, { maxBuffer: MAX_OUTPUT_BYTES });
    return stdout;
  } catch (cause) {
    if (systemErrorCode(cause) === 'ENOENT') {
      throw new CheckpointError('RESTORE_FAILED', `${step}: qemu-img is not installed`, {
        cause,
        hint: 'install qemu-utils (Debian) or qemu-img (Fedora, SUSE), or leave the disks as they are with --keep-disks',
      });
    }
    const said = errorOutput(cause);
    if (LOCKED.test(said)) {
      throw new CheckpointError('RESTORE_TARGET_BUSY', `${step}: another process has the image open`, {
        cause,
        hint: 'stop the VM that uses this disk first',
      });
    }
    throw new CheckpointError('RESTORE_FAILED', `${step}: ${said}`, { cause });
  }
}

function errorOutput(error: unknown): string {
  const said =
    typeof error === 'object' && error !== null && 'stderr' in error ? String(error.stderr).trim() : '';
  return said === '' ? describeError(error) : said;
}
