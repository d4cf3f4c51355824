/**
 * The file that a restored QEMU writes its complaints to. Root opens it and the VM's user may own the folder,
 * so no link is followed, and nothing is written to that others could read or exchange.
 *
 *     --log PATH                     PATH, or a refusal
 *     folder of the QMP socket       QMP.log, when the folder is root's or the caller's
 *     any other                      qemu-PID-START.log in the runtime folder, swept when QEMU has ended
 */

import { constants, open, rename, rm, type FileHandle } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';

import { CheckpointError, systemErrorCode } from '../../../src/errors.js';
import { FileTrust } from '../../../src/host/file-trust.js';
import { ownIdentity, processStartTime } from '../../../src/host/process-identity.js';
import { defaultRuntimeDir, openRuntimeDir } from '../../../src/host/runtime-dir.js';

/** Reading is for the last lines; a FIFO in its place must not hold anybody up. */
const FLAGS = constants.O_RDWR | constants.O_APPEND | constants.O_NOFOLLOW | constants.O_NONBLOCK;
const NEW = constants.O_CREAT | constants.O_EXCL;

export interface QemuLog {
  readonly file: FileHandle;
  /** Takes its last name, after the process that writes to it. */
  belongsTo(pid: number): Promise<void>;
  /** The process did not come up: a file that is named after nobody goes. */
  drop(): Promise<void>;
}

/** @throws RESTORE_FAILED when the log cannot be written, or is somebody else's */
export async function openLog(asked: string | undefined, qmpPath: string): Promise<QemuLog> {
  const path = asked === undefined ? `${qmpPath}.log` : resolve(asked);
  const place = await new FileTrust([ownUser()]).replaceable(dirname(path));
  if (place === undefined)
    return { file: await openOwn(path), belongsTo: () => Promise.resolve(), drop: () => Promise.resolve() };
  if (asked !== undefined) throw notOurs(path, `${place.path} ${place.why}`);
  const folder = await openRuntimeDir(defaultRuntimeDir());
  const { pid, startTime } = ownIdentity();
  const fresh = join(folder, `qemu-${pid}-${startTime}.log`);
  return {
    file: await openOwn(fresh),
    belongsTo: async (of) => {
      await rename(fresh, join(folder, `qemu-${of}-${await processStartTime(of)}.log`)).catch(
        () => undefined,
      );
    },
    drop: () => rm(fresh, { force: true }),
  };
}

async function openOwn(path: string): Promise<FileHandle> {
  const file = await openNewOrOld(path).catch((cause: unknown) => {
    if (systemErrorCode(cause) === 'ELOOP') throw notOurs(path, 'it is a symbolic link');
    throw new CheckpointError('RESTORE_FAILED', `cannot write the log of the new QEMU, ${path}`, {
      cause,
      hint: 'name another file with --log',
    });
  });
  try {
    const found = await file.stat();
    const isPlain = (found.isFile() && found.nlink === 1) || found.isCharacterDevice();
    if (!isPlain) throw notOurs(path, 'it is no file of its own');
    if (found.uid !== 0 && found.uid !== ownUser()) throw notOurs(path, `it belongs to user ${found.uid}`);
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function openNewOrOld(path: string): Promise<FileHandle> {
  try {
    return await open(path, FLAGS | NEW, 0o600);
  } catch (error) {
    if (systemErrorCode(error) !== 'EEXIST') throw error;
    return open(path, FLAGS);
  }
}

function ownUser(): number {
  return process.geteuid?.() ?? 0;
}

function notOurs(path: string, why: string): CheckpointError {
  return new CheckpointError('RESTORE_FAILED', `${path} is no place for the log of the new QEMU: ${why}`, {
    hint: 'name a file in a folder of your own with --log',
  });
}
