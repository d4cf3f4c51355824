/**
 * The oracle: with the VM stopped at the very moment of a checkpoint, all of its memory is compared with what the
 * repository gives back for that checkpoint.
 *
 * A hook holds the pause open until the truth is taken (the hook's documented phase `paused`); the checkpoint is then finished
 * the ordinary way. So what is compared is a checkpoint of a running VM, rounds, stop and resume included.
 */

import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { openBackend, Repository } from '../../../src/index.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import type { LabMachine } from '../machine.js';
import { CairnProcess, isSummary, type CliMessage, type CliOptions } from './cairn-cli.js';
import { differingPages, groundTruth } from './ground-truth.js';

/** Holds the pause open; one at a time in a folder. */
export class PauseHold {
  readonly command: string;
  readonly #held: string;
  readonly #go: string;

  constructor(dir: string) {
    this.#held = join(dir, 'pause-held');
    this.#go = join(dir, 'pause-go');
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

/** One checkpoint by a CLI process of its own, and the pages in which it differs from the truth. */
export async function checkpointAgainstTruth(
  machine: LabMachine,
  args: readonly string[],
  options: CliOptions & { readonly repo: string },
  truthOf = groundTruth,
): Promise<{ readonly summary: CliMessage; readonly differing: readonly string[] }> {
  const hold = new PauseHold(machine.dir);
  const process = new CairnProcess(
    ['checkpoint', machine.address, '--repo', options.repo, '--hook', hold.command, ...args],
    options,
  );
  await hold.reached(process);
  const truth = await truthOf(machine);
  hold.release();
  const summary = await process.message(isSummary);
  await process.ended;
  return {
    summary,
    differing: differingPages(truth, await readCheckpoint(options.repo, String(summary.checkpoint_id))),
  };
}

/** All memory of a checkpoint, by region. */
export async function readCheckpoint(repo: string, checkpointId: string): Promise<Map<string, Buffer>> {
  const repository = await Repository.open(openBackend(repo));
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
