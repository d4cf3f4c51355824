/**
 * Bringing a domain back with `xl restore`: the save file is written into its standard input as it is read
 * from the repository. The guest starts only after the last record: a damaged checkpoint breaks the stream
 * off, and xl takes the half-built domain down again.
 *
 * Disks with an internal snapshot and logical volumes are rolled back right before the last record: by then
 * all memory has been read and verified, and libxl starts the QEMU that opens the images only after it.
 */

import { randomUUID } from 'node:crypto';

import { CheckpointError, isCheckpointError } from '../../src/errors.js';
import { failureOf, startProgram } from '../../src/host/run-program.js';
import type { CheckpointSource, RestoreRequest, RestoreResult } from '../../src/hypervisor/restore.js';
import type { Json, JsonObject } from '../../src/types.js';
import type { DiskSnapshot } from '../../src/hypervisor/disks.js';
import { pushStream } from '../qemu/stream/push.js';
import { storedImages } from '../disks/qcow2/stored-images.js';
import { disksOfStoppedDomain } from './devices/recorded-disks.js';
import { saveContentOf } from './stream/save-file.js';
import { lastAfter } from './stream/last-after.js';
import { writeSaveFile } from './stream/writer.js';
import { domainIdOf, listOf, objectOf, textOf } from './domain/xl.js';
import type { XenRestoreOptions, XenRestoreRequest } from './restore-options.js';

/**
 * xl may stand still for this long. After the last record libxl starts the device model and the scripts of
 * network and disks, each with limits of its own.
 */
const LIMIT_MS = 600_000;

/**
 * @throws USAGE, VM_UNSUPPORTED, RESTORE_TARGET_BUSY, RESTORE_FAILED, REPO_DAMAGED, STREAM_MALFORMED,
 *   INTERRUPTED
 */
export async function restoreCheckpoint(
  source: CheckpointSource,
  request: XenRestoreRequest,
): Promise<RestoreResult> {
  const disks = request.keepDisks ? [] : recordedDisks(source, request.diskPaths);
  const drivers = disksOfStoppedDomain(storedImages);
  drivers.refuseUnknown(disks);
  const content = await saveContentOf(source, (config) => edited(config, request), request.signal);
  const name = textOf(objectOf((JSON.parse(content.config) as JsonObject).c_info).name);
  if (await isTaken(name)) {
    throw new CheckpointError('RESTORE_TARGET_BUSY', `there is a domain called "${name}" already`, {
      hint: 'xl destroy it, or restore under another name with --new-name',
    });
  }
  await drivers.check(disks);
  const totalPages = content.state.presentFrames.reduce(
    (sum, value, i) => (i % 2 === 1 ? sum + value : sum),
    0,
  );
  const { onProgress } = request;
  const streamBytes = await feedXl(
    { ...content, onProgress: (done) => onProgress?.(done * 4096, totalPages * 4096) },
    request,
    // Once the QEMU of the domain has the images open, nothing in them can be let go of any more.
    async () => (await drivers.rollBack(disks)).settle(),
  );
  return { vmAddress: `xen:${name}`, pid: 0, running: !request.paused, streamBytes };
}

async function feedXl(
  content: Parameters<typeof writeSaveFile>[0],
  { paused, signal }: RestoreRequest,
  beforeTheLast: () => Promise<void>,
): Promise<number> {
  // xl wants a file that it can open; Node's pipes are sockets, which cannot be opened by name. Hence the
  // shell and its pipe.
  const script = 'cat | exec xl restore "$@" /proc/self/fd/0';
  const child = await startProgram('sh', ['-c', script, 'sh', ...(paused ? ['-p'] : [])], {
    limitMs: LIMIT_MS,
    stdout: 'ignore',
    isShellCommand: true,
  });
  let failure: unknown;
  let streamBytes = 0;
  try {
    streamBytes = await pushStream(lastAfter(writeSaveFile(content), beforeTheLast), child.stdin, signal);
    child.stdin.end();
  } catch (error) {
    failure = error;
    // An early end: xl destroys what it had begun to build.
    child.stdin.destroy();
  }
  const result = await child.ended;
  if (signal?.aborted === true) throw new CheckpointError('INTERRUPTED', 'the restore was interrupted');
  if (isCheckpointError(failure)) throw failure;
  if (failure === undefined && result.kind === 'done') return streamBytes;
  throw new CheckpointError('RESTORE_FAILED', `xl restore failed: ${tellingLines(failureOf('xl', result))}`, {
    ...(failure === undefined ? {} : { cause: failure }),
    hint:
      result.kind === 'late'
        ? 'xl list shows whether a half-built domain is left, which xl destroy takes away'
        : 'is there enough free memory (xl info), and do kernel, bridges and disks of the domain exist on this host?',
  });
}

/** Without those that the restored domain is to find elsewhere: what lies there is the caller's. */
function recordedDisks(source: CheckpointSource, diskPaths: readonly string[] = []): readonly DiskSnapshot[] {
  const moved = new Set(diskPaths.map((text) => text.slice(0, text.indexOf('='))));
  return source.disks.filter(({ diskId }) => !moved.has(diskId));
}

/** The first say what went wrong, the last how it ended. */
function tellingLines(text: string): string {
  const lines = text.split(/\r|; /).filter((line) => line.trim() !== '' && !line.includes('progress'));
  const [first, last] = [lines.slice(0, 3), lines.slice(3).slice(-2)];
  return [...first, ...last].join(' | ') || 'it said nothing';
}

async function isTaken(name: string): Promise<boolean> {
  try {
    await domainIdOf(name);
    return true;
  } catch (error) {
    if (isCheckpointError(error, 'VM_UNREACHABLE')) return false;
    throw error;
  }
}

/** @throws USAGE for a disk that the domain does not have */
function edited(config: JsonObject, { newName, diskPaths = [] }: XenRestoreOptions): JsonObject {
  const renamed: JsonObject = newName === undefined ? {} : { name: newName, uuid: randomUUID() };
  return {
    ...config,
    c_info: { ...objectOf(config.c_info), ...renamed },
    ...(diskPaths.length === 0 ? {} : { disks: movedDisks(listOf(config.disks), diskPaths) }),
  };
}

function movedDisks(disks: readonly Json[], diskPaths: readonly string[]): readonly Json[] {
  const moved = new Map(
    diskPaths.map((text) => {
      const [, target, path] = /^([^=]+)=(.+)$/.exec(text) ?? [];
      if (target !== undefined && path !== undefined) return [target, path];
      throw new CheckpointError('USAGE', `"${text}" is not DISK=PATH`, {
        hint: 'for example --disk xvda=/srv/copy.img',
      });
    }),
  );
  const known = disks.map((disk) => textOf(objectOf(disk).vdev));
  const unknown = [...moved.keys()].filter((target) => !known.includes(target));
  if (unknown.length > 0) {
    throw new CheckpointError('USAGE', `the domain has no disk ${unknown.join(', ')}`, {
      hint: `its disks: ${known.join(', ') || 'none'}`,
    });
  }
  return disks.map((disk) => {
    const path = moved.get(textOf(objectOf(disk).vdev));
    return path === undefined ? disk : { ...objectOf(disk), pdev_path: path };
  });
}
