/**
 * The oracle: with the VM stopped at the very moment of a checkpoint, all of its memory is compared with what the
 * repository gives back for that checkpoint.
 *
 * A hook holds the pause open until the truth is taken (the hook's documented phase `paused`); the checkpoint is then finished
 * the ordinary way. So what is compared is a checkpoint of a running VM, rounds, stop and resume included.
 */

import { chmodSync, existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { openStorage, Repository } from '../../../src/index.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import type { LabMachine } from '../machine.js';
import { CairnProcess, isSummary, type CliMessage, type CliOptions } from './cairn-cli.js';
import { groundTruth } from './ground-truth.js';

/** Holds the pause open; one at a time in a folder. */
export class PauseHold {
  readonly command: string;
  readonly #held: string;
  readonly #go: string;

  constructor(dir: string) {
    // Cairn may run as another user, whose hook removes what this process has made.
    const holdDir = join(dir, 'hold');
    mkdirSync(holdDir, { recursive: true });
    chmodSync(holdDir, 0o777);
    this.#held = join(holdDir, 'held');
    this.#go = join(holdDir, 'go');
    this.command =
      `[ "$CAIRN_PHASE" = paused ] || exit 0; echo held > ${this.#held}; ` +
      `while [ ! -e ${this.#go} ]; do sleep 0.02; done; rm -f ${this.#go} ${this.#held}`;
  }

  /** Waits until the VM is held in its pause. */
  async reached(process: CairnProcess): Promise<void> {
    while (!existsSync(this.#held) || existsSync(this.#go)) {
      if (process.isOver)
        throw new Error(`cairn ended before the pause: ${JSON.stringify(await process.ended)}`);
      await sleep(5);
    }
  }

  release(): void {
    rmSync(this.#held, { force: true });
    writeFileSync(this.#go, '');
  }
}

/** As long as a chunk of the reader may be. */
const ZEROS = Buffer.alloc(1 << 20);

/** Of the checkpoint before, whose buffers are used again. */
const truths = new WeakMap<LabMachine, ReadonlyMap<string, Buffer>>();

/** One checkpoint by a CLI process of its own, and the pages in which it differs from the truth. */
export async function checkpointAgainstTruth(
  machine: LabMachine,
  args: readonly string[],
  options: CliOptions & { readonly repo: string },
  truthOf: (
    machine: LabMachine,
    old?: ReadonlyMap<string, Buffer>,
  ) => Promise<Map<string, Buffer>> = groundTruth,
): Promise<{
  readonly summary: CliMessage;
  readonly differing: readonly string[];
  /** What Cairn told on the way. */
  readonly warnings: readonly string[];
}> {
  const hold = new PauseHold(machine.dir);
  const process = new CairnProcess(
    ['checkpoint', machine.address, '--repo', options.repo, '--hook', hold.command, ...args],
    options,
  );
  await hold.reached(process);
  const truth = await truthOf(machine, truths.get(machine));
  truths.set(machine, truth);
  hold.release();
  const summary = await process.message(isSummary);
  await process.ended;
  return {
    summary,
    differing: await differingFromStored(truth, options.repo, String(summary.checkpoint_id)),
    warnings: warningsOf(process.messages),
  };
}

export function warningsOf(messages: readonly CliMessage[]): readonly string[] {
  return messages.flatMap(({ warning }) => (typeof warning === 'string' ? [warning] : []));
}

/**
 * The first pages in which a checkpoint is not the truth, as "block page". Empty when every byte of all regions is equal. The
 * checkpoint is compared as it is read: to have it whole would mean to touch as much memory again.
 * @param truth region name -> contents
 */
export async function differingFromStored(
  truth: ReadonlyMap<string, Buffer>,
  repo: string,
  checkpointId: string,
  most = 10,
): Promise<string[]> {
  const repository = await Repository.open(await openStorage(repo));
  const manifest = await repository.find(checkpointId);
  const { regions } = manifest.layout;
  const found: string[] = [];
  for (const name of truth.keys())
    if (!regions.some(({ id }) => id === name)) found.push(`${name}: not in the checkpoint`);
  let next = 0;
  for await (const { firstPage, pageCount, bytes } of repository.reader(manifest).pages()) {
    const region = regions.find(
      (one) => firstPage >= one.firstPage && firstPage < one.firstPage + one.pageCount,
    );
    if (region === undefined) throw new Error(`page ${firstPage} lies in no region`);
    if (firstPage !== next && firstPage !== region.firstPage)
      throw new Error(`page ${next} does not come in its turn`);
    next = firstPage + pageCount;
    const expected = truth.get(region.id);
    if (expected?.length !== region.sizeBytes) {
      const problem = `${region.id}: ${region.sizeBytes} bytes instead of ${expected?.length ?? 0}`;
      if (!found.includes(problem)) found.push(problem);
      continue;
    }
    const at = (firstPage - region.firstPage) * PAGE_SIZE_BYTES;
    const stored = bytes ?? ZEROS.subarray(0, pageCount * PAGE_SIZE_BYTES);
    if (stored.length !== pageCount * PAGE_SIZE_BYTES) throw new Error(`a chunk of ${pageCount} pages`);
    if (expected.compare(stored, 0, stored.length, at, at + stored.length) === 0) continue;
    for (let offset = 0; offset < stored.length && found.length < most; offset += PAGE_SIZE_BYTES) {
      const from = at + offset;
      if (expected.compare(stored, offset, offset + PAGE_SIZE_BYTES, from, from + PAGE_SIZE_BYTES) !== 0)
        found.push(`${region.id} page ${from / PAGE_SIZE_BYTES}`);
    }
  }
  const last = regions.at(-1);
  if (last !== undefined && next !== last.firstPage + last.pageCount)
    throw new Error(`page ${next} is not given`);
  await repository.close();
  return found;
}

/** All memory of a checkpoint, by region. */
export async function readCheckpoint(repo: string, checkpointId: string): Promise<Map<string, Buffer>> {
  const repository = await Repository.open(await openStorage(repo));
  const manifest = await repository.find(checkpointId);
  const regions = new Map(
    manifest.layout.regions.map((region) => [region.id, Buffer.alloc(region.sizeBytes)]),
  );
  for await (const chunk of repository.reader(manifest).pages()) {
    const region = manifest.layout.regions.find(
      ({ firstPage, pageCount }) => chunk.firstPage >= firstPage && chunk.firstPage < firstPage + pageCount,
    );
    if (region === undefined) throw new Error(`page ${chunk.firstPage} lies in no region`);
    if (chunk.bytes !== null)
      regions.get(region.id)!.set(chunk.bytes, (chunk.firstPage - region.firstPage) * PAGE_SIZE_BYTES);
  }
  await repository.close();
  return regions;
}
