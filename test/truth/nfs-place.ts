/** What the trials of repositories on NFS share: where a repository is, and waiting. */

import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { openBackend, Repository, verify } from '../../src/index.js';
import type { CairnProcess } from '../lab/support/cairn-cli.js';
import { isStandingStill } from '../lab/support/stopped-cairn.js';
import type { NfsHost, NfsServer } from './nfs-server.js';
import { printLine } from './truth-line.js';

/** For how long the server is away from those who wait for it. */
export const AWAY_MS = 2000;

/** One repository, as a host sees it on its mount and as the server has it. */
export interface Place {
  readonly host: NfsHost;
  readonly what: string;
  readonly repo: string;
  readonly onServer: string;
}

/** Kinds of mounts. */
export const MOUNTS = {
  hard4: { what: 'NFS 4.2, hard', options: 'vers=4.2,hard' },
  // Given up after 4 s.
  soft4: { what: 'NFS 4.2, soft', options: 'vers=4.2,soft,timeo=20,retrans=1,nosharecache' },
} as const;

export type MountKind = keyof typeof MOUNTS;

const mounted = new Set<string>();

/** @param name of the repository */
export function place(server: NfsServer, host: NfsHost, kind: MountKind, name: string): Place {
  const folder = `/tmp/mnt-${host}-${kind}`;
  const { what, options } = MOUNTS[kind];
  if (!mounted.has(folder)) {
    mkdirSync(folder);
    server.mount(host, folder, options);
    mounted.add(folder);
  }
  return { host, what, repo: join(folder, name), onServer: join(server.folder, name) };
}

export function must(what: string, isSo: boolean, found?: unknown): void {
  if (!isSo) throw new Error(`${what}: ${JSON.stringify(found)}`);
}

export function checked(scenario: string): void {
  printLine({ event: 'checked', scenario, faults: [] });
}

export async function until(what: string, isSo: () => boolean, timeoutMs = 120_000): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!isSo()) {
    if (Date.now() > end) throw new Error(`not in time: ${what}`);
    await sleep(20);
  }
}

export async function stopped(cairn: CairnProcess): Promise<void> {
  await until('cairn stands still', () => isStandingStill(cairn.child.pid!) || cairn.isOver);
  if (cairn.isOver) throw new Error(`cairn ended: ${JSON.stringify(await cairn.ended)}`);
}

/** Reads all of a repository through the mount. */
export async function mustVerify({ repo }: Place, found?: unknown): Promise<void> {
  const repository = await Repository.open(openBackend(repo));
  const { problems } = await verify(repository);
  await repository.close();
  must('the repository verifies', problems.length === 0, { problems, found });
}

/** A soft mount says EIO for a while after the server is back. */
export async function answersAgain({ repo }: Place): Promise<void> {
  for (let tries = 0; tries < 60; tries++) {
    try {
      await (await Repository.open(openBackend(repo))).checkpoints();
      return;
    } catch {
      await sleep(1000);
    }
  }
  throw new Error('the server does not answer again');
}

/** Names and inodes of files, as text to be compared. */
export function filesIn(onServer: string, isMeant: (line: string) => boolean): string {
  const lines = execFileSync('find', [onServer, '-type', 'f', '-exec', 'stat', '-c', '%n %i', '{}', '+'], {
    encoding: 'utf8',
  }).split('\n');
  return lines.filter(isMeant).sort().join('\n');
}
