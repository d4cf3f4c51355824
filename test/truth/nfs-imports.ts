/**
 * Checkpoints of a small memory, brought by `cairn import`, at whose commit the server goes away, or carries out the request and loses its
 * answer. Afterwards the server's disk, read by the verifier that shares no code with the product, must agree with the
 * exit code:
 *
 *     0     the checkpoint is there
 *     26    it may be there
 *     else  it is not
 */

import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { EXIT } from '../../src/cli/exit-codes.js';
import type { PageChunk } from '../../src/hypervisor/restore.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { migrationOf, SMALL_LAYOUT } from '../fuzz/small-machines.js';
import { verifyRepository } from '../golden/verifier.js';
import { cairn, CairnProcess, isSummary, type CliResult } from '../lab/support/cairn-cli.js';
import { stopBefore, type StoppableCall } from '../lab/support/stop-before-call.js';
import {
  answersAgain,
  AWAY_MS,
  checked,
  filesIn,
  must,
  mustVerify,
  stopped,
  until,
  type Place,
} from './nfs-place.js';
import type { NfsServer } from './nfs-server.js';

const CHAIN = 'web1';

interface Moment {
  readonly call: StoppableCall;
  readonly pathPart: string;
}

/** The checkpoint begins to exist by it. */
const COMMIT: Moment = { call: 'link', pathPart: '/checkpoints/' };

type Regions = Readonly<Record<string, string>>;

export class Imports {
  readonly #server: NfsServer;
  readonly #place: Place;
  readonly #dir: string;
  #salt = 0;
  /** Of checkpoints that are there. */
  readonly #known = new Map<string, Regions>();

  private constructor(server: NfsServer, place: Place, dir: string) {
    this.#server = server;
    this.#place = place;
    this.#dir = dir;
  }

  /** A repository with one checkpoint. */
  static async start(server: NfsServer, place: Place, dir: string): Promise<Imports> {
    const imports = new Imports(server, place, dir);
    await cairn(['init', '--repo', place.repo], { dir });
    await imports.#next();
    return imports;
  }

  /** @param isHard the mount waits for the server for as long as it takes */
  async all(isHard: boolean): Promise<void> {
    await this.#unanswered(COMMIT, isHard);
    await this.#away(COMMIT, isHard);
    // It goes on from there.
    await this.#next();
  }

  async #next(): Promise<void> {
    const result = await (await this.#import({})).ended;
    await this.#mustAgree(result, [EXIT.ok], 'an import');
  }

  /** The server goes away before the call. */
  async #away(moment: Moment, isHard: boolean): Promise<void> {
    const process = await this.#import(stopBefore(moment.call, moment.pathPart));
    await stopped(process);
    this.#server.down();
    process.child.kill('SIGCONT');
    if (isHard) {
      await sleep(AWAY_MS);
      must('it waits', !process.isOver);
    } else await process.ended;
    this.#server.up();
    const result = await process.ended;
    const may = isHard ? [EXIT.ok] : [EXIT.ok, EXIT.storage, EXIT.uncertain];
    await this.#mustAgree(result, may, `away at ${moment.call} ${moment.pathPart}`);
  }

  /** It carries out the call, the answer is lost, and it forgets what it has answered: a request that is sent again is a new one. */
  async #unanswered(moment: Moment, isHard: boolean): Promise<void> {
    const process = await this.#import(stopBefore(moment.call, moment.pathPart));
    await this.#lose(process, moment, isHard);
    const may = isHard ? [EXIT.ok] : [EXIT.ok, EXIT.storage, EXIT.uncertain];
    const result = await process.ended;
    await this.#mustAgree(result, may, `answer lost to ${moment.call} ${moment.pathPart}`);
    if (!isHard) must('nobody could be asked', result.exitCode === EXIT.uncertain, result);
  }

  async #lose(process: CairnProcess, { call, pathPart }: Moment, isHard: boolean): Promise<void> {
    const { host, onServer } = this.#place;
    await stopped(process);
    const before = everyFileIn(onServer, pathPart);
    this.#server.freeze();
    process.child.kill('SIGCONT');
    await until(`${call} comes to the server`, () => this.#server.isWriteWaiting());
    this.#server.thawMuted(host);
    await until(`the server has done ${call}`, () => everyFileIn(onServer, pathPart) !== before);
    if (isHard) must('nobody knows', !process.isOver);
    else await process.ended;
    this.#server.down();
    this.#server.unmute(host);
    this.#server.up();
  }

  async #import(env: NodeJS.ProcessEnv): Promise<CairnProcess> {
    const path = join(this.#dir, 'small.mig');
    writeFileSync(path, await smallStream(++this.#salt));
    return new CairnProcess(importArgs(path, this.#place.repo, CHAIN), { dir: this.#dir, env });
  }

  async #mustAgree(result: CliResult, may: readonly number[], what: string): Promise<void> {
    const { exitCode, messages } = result;
    must(`${what}: exit code`, may.includes(exitCode ?? -1), result);
    if (exitCode !== EXIT.ok) await answersAgain(this.#place);
    const added = verifyRepository(this.#place.onServer).filter(({ id }) => !this.#known.has(id));
    const mayBe = exitCode === EXIT.ok ? [1] : exitCode === EXIT.uncertain ? [0, 1] : [0];
    must(`${what}: what was said is so`, mayBe.includes(added.length), { result, added });
    if (exitCode === EXIT.ok)
      must('it is this one', added[0]?.id === messages.find(isSummary)?.checkpoint_id, { result, added });
    for (const { id } of added) this.#known.set(id, regionsOf(this.#salt));
    await this.#mustBeSo(result);
    const code = messages.find(({ message_type: type }) => type === 'error')?.code ?? 'OK';
    checked(
      `${this.#place.what}, ${what}: ${exitCode ?? 'no exit code'} ${JSON.stringify(code)}, ${added.length} more`,
    );
  }

  /** All that is known to be there is, with its memory, and nothing else. */
  async #mustBeSo(result: CliResult): Promise<void> {
    const there = verifyRepository(this.#place.onServer);
    must('as many as known', there.length === this.#known.size, { there, result });
    for (const { id, regions } of there)
      must('its memory', JSON.stringify(regions) === JSON.stringify(this.#known.get(id)), { id, result });
    await mustVerify(this.#place, result);
  }
}

export function importArgs(stream: string, repo: string, name: string): readonly string[] {
  return ['import', stream, '--format', 'qemu', '--name', name, '--repo', repo];
}

/** A migration stream of a small machine. @param salt part of its pages depends on it */
export function smallStream(salt: number): Promise<Buffer> {
  return migrationOf(SMALL_LAYOUT, () => pagesOf(salt));
}

/** Also locks and unfinished files. */
function everyFileIn(onServer: string, pathPart: string): string {
  return filesIn(onServer, (line) => line.includes(pathPart.replace('~', '')));
}

function pageOf(page: number, salt: number): Buffer {
  return createHash('sha512')
    .update(page % 4 === 3 ? `${page} ${salt}` : `${page}`)
    .digest();
}

// eslint-disable-next-line @typescript-eslint/require-await -- the shape of a checkpoint's pages
async function* pagesOf(salt: number): AsyncGenerator<PageChunk> {
  for (const { firstPage, pageCount } of SMALL_LAYOUT.regions)
    for (let page = firstPage; page < firstPage + pageCount; page++)
      yield { firstPage: page, pageCount: 1, bytes: Buffer.alloc(PAGE_SIZE_BYTES, pageOf(page, salt)) };
}

/** SHA-256 of each region. */
function regionsOf(salt: number): Regions {
  return Object.fromEntries(
    SMALL_LAYOUT.regions.map(({ id, firstPage, pageCount }) => {
      const hash = createHash('sha256');
      for (let page = firstPage; page < firstPage + pageCount; page++)
        hash.update(Buffer.alloc(PAGE_SIZE_BYTES, pageOf(page, salt)));
      return [id, hash.digest('hex')];
    }),
  );
}
