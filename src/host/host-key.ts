/**
 * The key by which this host knows the checkpoints that it took: 32 random bytes in a file that only root, or
 * the user that runs Cairn, can read. Made on first use and never changed.
 *
 * Whoever reads it can make checkpoints that pass for this host's. When it is lost, all earlier checkpoints
 * count as another host's: a restore asks before it runs one.
 */

import { randomBytes } from 'node:crypto';
import { constants, link, open, rm } from 'node:fs/promises';
import { join } from 'node:path';

import { CheckpointError, systemErrorCode } from '../errors.js';
import { defaultStateDir, openStateDir } from './state-dir.js';

const KEY_BYTES = 32;
const FILE = 'host-key';

/** Makes the key when there is none. @throws VM_PERMISSION when it cannot be kept safely */
export async function makeHostKey(folder = defaultStateDir()): Promise<Uint8Array> {
  const path = join(await openStateDir(folder), FILE);
  const known = await readKey(path);
  if (known !== undefined) return known;
  const fresh = join(folder, `${FILE}-${process.pid}-${randomBytes(4).toString('hex')}`);
  try {
    const file = await open(fresh, 'wx', 0o600);
    try {
      await file.writeFile(randomBytes(KEY_BYTES));
      await file.sync();
    } finally {
      await file.close();
    }
    // Of two that make it at once, the second finds the first one's.
    await link(fresh, path).catch((error: unknown) => {
      if (systemErrorCode(error) !== 'EEXIST') throw error;
    });
  } catch (cause) {
    throw new CheckpointError('VM_PERMISSION', `cannot make the key of this host, ${path}`, {
      cause,
      hint: 'name another folder with CAIRN_STATE_DIR',
    });
  } finally {
    await rm(fresh, { force: true }).catch(() => undefined);
  }
  return (await readKey(path)) ?? (await makeHostKey(folder));
}

/** @returns undefined when this host has no key, and so took no checkpoint @throws VM_PERMISSION */
export async function findHostKey(folder = defaultStateDir()): Promise<Uint8Array | undefined> {
  const known = await readKey(join(folder, FILE));
  if (known !== undefined) await openStateDir(folder);
  return known;
}

async function readKey(path: string): Promise<Uint8Array | undefined> {
  const unsafe = (why: string, cause?: unknown): CheckpointError =>
    new CheckpointError('VM_PERMISSION', `the key of this host, ${path}, ${why}`, {
      ...(cause === undefined ? {} : { cause }),
      hint: 'remove it when others may have read or changed it: a new one is made, and restores of earlier checkpoints ask first',
    });
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW).catch((cause: unknown) => {
    if (systemErrorCode(cause) === 'ENOENT') return undefined;
    throw unsafe('cannot be read', cause);
  });
  if (file === undefined) return undefined;
  try {
    const { uid, mode, size } = await file.stat();
    if (uid !== 0 && uid !== process.geteuid?.()) throw unsafe(`belongs to user ${uid}`);
    if ((mode & 0o077) !== 0) throw unsafe('can be read by others');
    if (size !== KEY_BYTES) throw unsafe(`is not ${KEY_BYTES} bytes long`);
    return await file.readFile();
  } finally {
    await file.close();
  }
}
