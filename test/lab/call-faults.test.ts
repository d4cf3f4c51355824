/**
 * A system call of a cairn that writes to a repository fails, or is carried out and says that it failed, as over a network. Each call in turn, in
 * a real process. Afterwards the manifests, the packs that they need and what the caller was told must agree:
 *
 *     exit code of import              the checkpoint
 *     0                                is there
 *     26 CHECKPOINT_UNCERTAIN          may be there
 *     anything else                    is not there
 *
 * What a call does to a storage that is asked afterwards is tried in test/fault/lost-answers.test.ts; here are the calls that libuv makes.
 */

import { createHash } from 'node:crypto';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { EXIT } from '../../src/cli/exit-codes.js';
import { forget } from '../../src/repository/forget/forget.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { FileBackend } from '../../src/storage/file.js';
import type { PageChunk } from '../../src/hypervisor/restore.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { migrationOf, SMALL_LAYOUT } from '../fuzz/small-machines.js';
import { verifyRepository } from '../golden/verifier.js';
import { strays } from '../support/forget-model.js';
import { cairn, isSummary } from './support/cairn-cli.js';
import {
  makeCallFaults,
  runFaulty,
  whyNoCallFaults,
  type CallFault,
  type FaultyCall,
  type Watched,
} from './support/call-faults.js';

const reason = whyNoCallFaults();
if (reason !== '') process.stderr.write(`test/lab/call-faults.test.ts is skipped: ${reason}\n`);
const describeReal = reason === '' ? describe : describe.skip;

/** A file system says EEXIST of a link that it made, and ENOENT of a name that it removed, when it was asked twice. */
const WAYS: readonly Omit<CallFault, 'nth'>[] = (
  [
    ['link', 'EIO', false, false],
    ['link', 'EIO', true, false],
    ['link', 'EEXIST', true, false],
    ['link', 'EIO', false, true],
    ['link', 'EIO', true, true],
    ['rename', 'EIO', false, false],
    ['rename', 'EIO', true, false],
    ['rename', 'ENOENT', true, false],
    ['rename', 'EIO', true, true],
    ['unlink', 'EIO', false, false],
    ['unlink', 'EIO', true, false],
    ['unlink', 'ENOENT', true, false],
    ['create', 'EIO', true, false],
    ['open', 'EIO', false, false],
    // Whether it was done shows after a power cut alone.
    ['sync', 'EIO', false, false],
  ] as const
).map(([call, errno, isDone, isOutage]) => ({ call, errno, isDone, isOutage }));

/** Cairns at once. */
const LANES = 2;
/** Checkpoints of the repository that each case begins with. */
const STORED = 3;

interface Checkpoint {
  readonly id: string;
  readonly regions: Readonly<Record<string, string>>;
}

describeReal('a system call that fails', () => {
  let top = '';
  let library = '';
  let stored: readonly Checkpoint[] = [];
  let caseCount = 0;
  const migration = (salt: number): string => join(top, `${salt}.mig`);

  beforeAll(async () => {
    top = mkdtempSync(join(tmpdir(), 'cairn-calls-'));
    library = join(top, 'call-faults.so');
    makeCallFaults(library);
    const repo = join(top, 'stored');
    await cairn(['init', '--repo', repo], { dir: top });
    cpSync(repo, join(top, 'empty'), { recursive: true });
    const made: Checkpoint[] = [];
    for (let salt = 0; salt <= STORED; salt++) {
      writeFileSync(migration(salt), await migrationOf(SMALL_LAYOUT, () => pagesAfter(salt)));
      if (salt === STORED) continue;
      const { checkpoint_id } = await cairn(importing(repo, salt), { dir: top });
      made.push({ id: String(checkpoint_id), regions: regionsOf(salt) });
    }
    stored = made;
  });
  afterAll(() => rmSync(top, { recursive: true, force: true }));

  function importing(repo: string, salt: number): readonly string[] {
    return ['import', migration(salt), '--format', 'qemu', '--name', 'web1', '--repo', repo];
  }

  /** What each command writes to, and what must hold then. */
  const commands: readonly {
    readonly name: string;
    readonly from: 'empty' | 'stored';
    /** Those that are tried, and must be seen. */
    readonly calls: readonly FaultyCall[];
    readonly isImport: boolean;
    readonly args: (repo: string) => readonly string[];
    readonly mustAgree: (repo: string, told: Watched) => void;
  }[] = [
    {
      name: 'the first checkpoint of a chain',
      from: 'empty',
      // The objects that only a first writer makes; the rest is as for the next one.
      calls: ['link'],
      isImport: true,
      args: (repo) => importing(repo, 0),
      mustAgree: (repo, told) => mustBeImported(repo, told, [], 0),
    },
    {
      name: 'a checkpoint',
      from: 'stored',
      calls: ['link', 'unlink', 'create', 'sync'],
      isImport: true,
      args: (repo) => importing(repo, STORED),
      mustAgree: (repo, told) => mustBeImported(repo, told, stored, STORED),
    },
    {
      name: 'forgetting',
      from: 'stored',
      calls: ['link', 'rename', 'unlink', 'create', 'open', 'sync'],
      isImport: false,
      args: (repo) => ['forget', '--name', 'web1', '--keep-last', '1', '--repo', repo],
      mustAgree: (repo, told) => {
        const left = read(repo);
        const last = stored.at(-1)!;
        expect(stored).toEqual(expect.arrayContaining([...left]));
        expect(left).toContainEqual(last);
        if (told.exitCode === EXIT.ok) expect(left).toEqual([last]);
      },
    },
  ];

  function mustBeImported(repo: string, told: Watched, before: readonly Checkpoint[], salt: number): void {
    const found = read(repo);
    expect(found.slice(0, before.length)).toEqual(before);
    const added = found.slice(before.length);
    expect(added.map(({ regions }) => regions)).toEqual(added.map(() => regionsOf(salt)));
    const { exitCode, messages } = told;
    if (exitCode === EXIT.ok)
      expect(added.map(({ id }) => id)).toEqual([messages.find(isSummary)!.checkpoint_id]);
    else expect(added.length).toBeLessThanOrEqual(exitCode === EXIT.uncertain ? 1 : 0);
  }

  async function run(command: (typeof commands)[number], fault: CallFault | undefined): Promise<Watched> {
    const dir = join(top, `case-${++caseCount}`);
    const repo = join(dir, 'repo');
    mkdirSync(dir);
    cpSync(join(top, command.from), repo, { recursive: true });
    const told = await runFaulty(library, command.args(repo), { dir, repo, ...(fault && { fault }) });
    try {
      expect(told).toMatchObject({ signal: null });
      expect(told.messages.find(({ code }) => code === 'UNEXPECTED')).toBeUndefined();
      command.mustAgree(repo, told);
      const repository = await Repository.open(new FileBackend(repo));
      expect((await verify(repository)).problems).toEqual([]);
      // Whoever comes next can work there, and clears away what is left.
      for (const source of await repository.sweepSources('web1'))
        await forget(source, { manifestKeys: new Set() });
      expect(await strays(repository)).toEqual([]);
      command.mustAgree(repo, told);
    } catch (error) {
      const what = `${JSON.stringify(fault)}, exit code ${told.exitCode}, ${JSON.stringify(told.messages)}`;
      throw new Error(`${what}: ${String(error)}`, { cause: error });
    }
    rmSync(dir, { recursive: true });
    return told;
  }

  describe.each(commands)('of $name', (command) => {
    let calls: readonly FaultyCall[] = [];
    beforeAll(async () => {
      ({ calls } = await run(command, undefined));
      // Else they go past the library, and nothing would be tried.
      for (const call of command.calls) expect(calls).toContain(call);
    });

    const ways = WAYS.filter(({ call }) => command.calls.includes(call));
    it.each(ways)('$call, $errno, done: $isDone, no answers after it: $isOutage', async (way) => {
      const count = calls.filter((call) => call === way.call).length;
      const left = Array.from({ length: count }, (_, i) => ({ ...way, nth: i + 1 }));
      const exitCodes: (number | null)[] = [];
      const lane = async (): Promise<void> => {
        for (let fault = left.shift(); fault !== undefined; fault = left.shift())
          exitCodes.push((await run(command, fault)).exitCode);
      };
      await Promise.all(Array.from({ length: LANES }, lane));
      // Uncertain is only what cannot be looked at.
      if (!way.isOutage) expect(exitCodes).not.toContain(EXIT.uncertain);
      else if (command.isImport) expect(exitCodes).toContain(EXIT.uncertain);
    });
  });
});

/** By the verifier that shares no code with the product. */
function read(repo: string): readonly Checkpoint[] {
  return verifyRepository(repo).map(({ id, regions }) => ({ id, regions }));
}

/**
 * Contents that do not compress. Some pages never change, so that of the first pack not all is needed any more when the checkpoints after it
 * are the only ones.
 */
function pageAfter(page: number, salt: number): Buffer {
  const text = page % 4 === 3 ? `${page} ${salt}` : `${page}`;
  const parts = Array.from({ length: PAGE_SIZE_BYTES / 64 }, (_, i) =>
    createHash('sha512').update(`${text} ${i}`).digest(),
  );
  return Buffer.concat(parts);
}

// eslint-disable-next-line @typescript-eslint/require-await -- the shape of a checkpoint's pages
async function* pagesAfter(salt: number): AsyncGenerator<PageChunk> {
  for (const { firstPage, pageCount } of SMALL_LAYOUT.regions)
    for (let page = firstPage; page < firstPage + pageCount; page++)
      yield { firstPage: page, pageCount: 1, bytes: pageAfter(page, salt) };
}

/** SHA-256 of each region of the small machine. */
function regionsOf(salt: number): Readonly<Record<string, string>> {
  return Object.fromEntries(
    SMALL_LAYOUT.regions.map(({ id, firstPage, pageCount }) => {
      const hash = createHash('sha256');
      for (let page = firstPage; page < firstPage + pageCount; page++) hash.update(pageAfter(page, salt));
      return [id, hash.digest('hex')];
    }),
  );
}
