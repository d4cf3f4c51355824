/**
 * Ends the children of a fork when the process that starts them is killed before all of them run: a QEMU that
 * waits for its siblings would wait for ever. It knows them by the template that each of them has open from
 * its first instruction on, so that none can be missed.
 *
 *     argv    name of the template
 *     stdin   a path of a folder a line, as JSON; "done" when the children are by themselves
 *     stdout  a line when it is ready
 */

import { readdirSync, readlinkSync, rmSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';

/** A killed QEMU with much memory takes its time to go. */
const LIMIT_MS = 30_000;
const RETRY_MS = 20;

const [, , templateName = ''] = process.argv;
const folders: string[] = [];
let isDone = false;

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const) process.on(signal, () => undefined);
process.stdout.on('error', () => undefined);
process.stdout.write('ready\n');
for await (const line of createInterface({ input: process.stdin })) {
  const said: unknown = JSON.parse(line);
  if (said === 'done') isDone = true;
  else if (typeof said === 'string' && isAbsolute(said)) folders.push(said);
}
if (!isDone) await endChildren();

async function endChildren(): Promise<void> {
  const untilMs = Date.now() + LIMIT_MS;
  // A program that was making a disk for a child goes on for a moment, and puts a file into a folder that is
  // being emptied.
  while ((killHolders() > 0 || !removeFolders()) && Date.now() < untilMs) await delay(RETRY_MS);
}

/** @returns whether all are gone */
function removeFolders(): boolean {
  let isAll = true;
  for (const folder of folders) {
    try {
      rmSync(folder, { recursive: true, force: true });
    } catch {
      isAll = false;
    }
  }
  return isAll;
}

/** @returns how many there were */
function killHolders(): number {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name) && holdsTemplate(name));
  for (const pid of pids) {
    try {
      process.kill(Number(pid), 'SIGKILL');
    } catch {
      // Gone already.
    }
  }
  return pids.length;
}

function holdsTemplate(pid: string): boolean {
  const folder = `/proc/${pid}/fd`;
  try {
    return readdirSync(folder).some(
      (name) => targetOf(`${folder}/${name}`) === `/memfd:${templateName} (deleted)`,
    );
  } catch {
    return false;
  }
}

function targetOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return '';
  }
}
