/** Ends all children of a fork, and removes what they had for themselves and what they stood on. */

import { rm } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

import { isSameProcess } from '../../host/process-identity.js';
import type { ForkResult } from './fork.js';

const POLL_MS = 5;

/**
 * At once, as if their power were cut. Those that have ended are no failure.
 * @throws what the file system throws when a folder cannot be removed
 */
export async function endForks({
  children,
  sharedFolders,
}: Pick<ForkResult, 'children' | 'sharedFolders'>): Promise<void> {
  await Promise.all(
    children.map(async ({ pid, startTime, folder }) => {
      if (await isSameProcess(pid, startTime)) process.kill(pid, 'SIGKILL');
      while (await isSameProcess(pid, startTime)) await delay(POLL_MS);
      await rm(folder, { recursive: true, force: true });
    }),
  );
  for (const folder of sharedFolders) await rm(folder, { recursive: true, force: true });
}
