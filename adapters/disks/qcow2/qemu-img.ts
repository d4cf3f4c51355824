/** qemu-img as a restore needs it: look at an image, roll it back, put an overlay on it. */

import { CheckpointError } from '../../../src/errors.js';
import { failureOf, runProgram } from '../../../src/host/run-program.js';

export interface ImageInfo {
  readonly format: string;
  readonly snapshotNames: readonly string[];
  /** Absolute; undefined for an image that stands alone. */
  readonly backingPath: string | undefined;
  readonly virtualSizeBytes: number;
  /** 0 for a format without clusters. */
  readonly clusterBytes: number;
  /** QEMU has found the image damaged, and opens it for reading alone. */
  readonly isCorrupt: boolean;
  /** Persistent dirty bitmaps, of whatever backup tool. */
  readonly bitmaps: readonly ImageBitmap[];
}

export interface ImageBitmap {
  readonly name: string;
  readonly granularityBytes: number;
  /** It goes on to record as soon as the image is opened. */
  readonly isRecording: boolean;
  /** Whoever had it open did not end well, so that what it says is not to be relied on. */
  readonly isInconsistent: boolean;
}

/** Metadata of a few MiB are read or written in less; storage that does not answer is found out. */
const LIMIT_MS = 60_000;
/**
 * Rolling back and deleting walk all metadata, which are GiB in an image of many TiB. An end in the middle
 * leaves the image to be repaired.
 */
const SNAPSHOT_LIMIT_MS = 30 * 60_000;
const SLOW_COMMANDS = ['snapshot', 'bitmap', 'convert'];
/** What qemu-img says in English, which the runner of programs sees to. */
const LOCKED = /Failed to get ".*" lock|another process using the image/i;

/**
 * @param format undefined has the format guessed from the content, which only what QEMU itself guessed may
 *   be: a guest can write into a raw disk what looks like another format.
 */
export async function imageInfo(path: string, format?: string): Promise<ImageInfo> {
  const formatArguments = format === undefined ? [] : ['-f', format];
  const text = await qemuImg(['info', '-U', '--output=json', ...formatArguments, path], `reading ${path}`);
  const info = JSON.parse(text) as {
    format?: string;
    snapshots?: readonly { name?: string }[];
    'full-backing-filename'?: string;
    'backing-filename'?: string;
    'virtual-size'?: number;
    'cluster-size'?: number;
    'format-specific'?: { data?: { corrupt?: boolean; bitmaps?: readonly ReportedBitmap[] } };
  };
  const { corrupt, bitmaps = [] } = info['format-specific']?.data ?? {};
  return {
    format: info.format ?? 'raw',
    snapshotNames: (info.snapshots ?? []).map(({ name }) => name ?? ''),
    backingPath: info['full-backing-filename'] ?? info['backing-filename'],
    virtualSizeBytes: info['virtual-size'] ?? 0,
    clusterBytes: info['cluster-size'] ?? 0,
    isCorrupt: corrupt === true,
    bitmaps: bitmaps.map(({ name, granularity, flags }) => ({
      name,
      granularityBytes: granularity,
      isRecording: flags.includes('auto'),
      isInconsistent: flags.includes('in-use'),
    })),
  };
}

/** Qcow2BitmapInfo of qapi/block-core.json. */
interface ReportedBitmap {
  readonly name: string;
  readonly granularity: number;
  readonly flags: readonly string[];
}

/**
 * Puts the image back to an internal snapshot; the snapshot stays.
 * @throws RESTORE_TARGET_BUSY, RESTORE_FAILED
 */
export async function applySnapshot(path: string, name: string): Promise<void> {
  await qemuImg(['snapshot', '-a', name, path], `rolling ${path} back to the snapshot ${name}`);
}

/**
 * Removes an internal snapshot. QEMU locks its images, so that of a running VM stays as it is.
 * @throws RESTORE_TARGET_BUSY, RESTORE_FAILED
 */
export async function deleteSnapshot(path: string, name: string): Promise<void> {
  await qemuImg(['snapshot', '-d', name, path], `deleting the snapshot ${name} of ${path}`);
}

/** @throws RESTORE_TARGET_BUSY, RESTORE_FAILED */
export async function takeSnapshot(path: string, name: string): Promise<void> {
  await qemuImg(['snapshot', '-c', name, path], `taking the snapshot ${name} of ${path}`);
}

/** @throws RESTORE_TARGET_BUSY, RESTORE_FAILED */
export async function removeBitmap(path: string, name: string): Promise<void> {
  await qemuImg(
    ['bitmap', '--remove', '-f', 'qcow2', '--', path, name],
    `removing the bitmap ${name} of ${path}`,
  );
}

/**
 * Adds a bitmap to an image, with nothing marked in it.
 * @param from a qcow2 image of the same virtual size with a bitmap of that name, whose marks it gets
 * @throws RESTORE_TARGET_BUSY, RESTORE_FAILED
 */
export async function addBitmap(
  path: string,
  { name, granularityBytes, isRecording }: ImageBitmap,
  from?: string,
): Promise<void> {
  await qemuImg(
    [
      ...['bitmap', '--add', '-g', `${granularityBytes}`, ...(isRecording ? [] : ['--disable'])],
      ...(from === undefined ? [] : ['--merge', name, '-b', from, '-F', 'qcow2']),
      ...['-f', 'qcow2', '--', path, name],
    ],
    `adding the bitmap ${name} to ${path}`,
  );
}

/**
 * Writes what an internal snapshot holds to a new image, while a VM may be writing to the image of the snapshot.
 * @throws RESTORE_FAILED
 */
export async function copySnapshot(path: string, name: string, to: string): Promise<void> {
  const source = ['-U', '-f', 'qcow2', '-l', `snapshot.name=${name}`];
  await qemuImg(
    ['convert', ...source, '-O', 'qcow2', '--', path, to],
    `copying the snapshot ${name} of ${path} to ${to}`,
  );
}

/** An empty image with large clusters: its metadata take no room to speak of. @throws RESTORE_FAILED */
export async function createScratchImage(path: string, virtualSizeBytes: number): Promise<void> {
  const options = ['-q', '-f', 'qcow2', '-o', 'cluster_size=2M'];
  await qemuImg(['create', ...options, path, `${virtualSizeBytes}`], `creating ${path}`);
}

/** Makes `overlay`, over what stands there. @throws RESTORE_FAILED */
export async function createOverlay(overlay: string, base: string, baseFormat: string): Promise<void> {
  await qemuImg(
    ['create', '-q', '-f', 'qcow2', '-b', base, '-F', baseFormat, overlay],
    `creating ${overlay}`,
  );
}

async function qemuImg(args: readonly string[], step: string): Promise<string> {
  const limitMs = SLOW_COMMANDS.includes(args[0]!) ? SNAPSHOT_LIMIT_MS : LIMIT_MS;
  const result = await runProgram('qemu-img', args, { limitMs });
  if (result.kind === 'done') return result.stdout;
  const why = failureOf('qemu-img', result, 'qemu-utils');
  if (LOCKED.test(why)) {
    throw new CheckpointError('RESTORE_TARGET_BUSY', `${step}: another process has the image open`, {
      hint: 'stop the VM that uses this disk first',
    });
  }
  throw new CheckpointError('RESTORE_FAILED', `${step}: ${why}`, hintFor(result.kind));
}

function hintFor(kind: 'failed' | 'late' | 'interrupted' | 'missing'): { readonly hint?: string } {
  switch (kind) {
    case 'missing':
      return {
        hint: 'install qemu-utils (Debian) or qemu-img (Fedora, SUSE), or leave the disks as they are with --keep-disks',
      };
    case 'late':
      return {
        hint: 'does the storage below the image answer? qemu-img check says whether the image is whole',
      };
    default:
      return {};
  }
}
