/**
 * Many rewinds in a row, each to a random one of some checkpoints. With the VM still paused, all of its memory is held
 * against what the repository gives back for that checkpoint; then the guest goes on, and its counter, its open file and
 * the disk are looked at.
 */

import { join } from 'node:path';

import {
  openBackend,
  openSession,
  hypervisors,
  Repository,
  rewind,
  type Manifest,
} from '../../../src/index.js';
import { seeded } from '../../support/seeded.js';
import type { LabMachine } from '../machine.js';
import { processTruth } from './process-truth.js';
import { StoredMemory } from './stored-memory.js';

/** Sectors past the last one written that are looked at: what a disk that stayed behind would have there. */
const LOOK_AHEAD = 400;
/** Between the checkpoint and the first tick after the rewind there may be one more in the guest's pipe. */
const TICKS_OFF = 3;

export interface RewindRounds {
  readonly rounds: number;
  readonly checkpoints: number;
  readonly seed: number;
  /** Each so many rounds the guest's checksum and the disk are looked at. */
  readonly guestEvery: number;
  readonly onRound?: (round: number, pauseMs: number) => void;
}

/** @returns what was not as it had to be; empty when all was */
export async function rewindRounds(machine: LabMachine, options: RewindRounds): Promise<readonly string[]> {
  const faults: string[] = [];
  const random = seeded(options.seed);
  const repo = join(machine.dir, 'rounds');
  const repository = await Repository.init(openBackend(repo));
  // What an earlier load has left on the disk would be taken for the future.
  await machine.guest(
    'lab stop; rm -f /tmp/work /tmp/fill; dd if=/dev/zero of=/dev/vda bs=1M count=8 2>/dev/null; sync',
  );
  await machine.guest('lab fill 8; lab memory 8; lab pair');
  const sum = await machine.guest('lab sum');
  const session = await openSession(hypervisors(), machine.address, {
    repository,
    runtimeDir: join(machine.dir, 'rounds-runtime'),
  });
  const stored = new StoredMemory(repo);
  let truth: Map<string, Buffer> | undefined;
  try {
    const taken: { readonly manifest: Manifest; readonly tick: number }[] = [];
    for (let i = 0; i < options.checkpoints; i++) {
      await machine.waitForProgress();
      const { checkpointId } = await session.checkpoint();
      taken.push({ manifest: await repository.find(checkpointId), tick: machine.lastTick() });
    }
    await machine.waitForProgress();
    for (let round = 0; round < options.rounds; round++) {
      const { manifest, tick } = taken[random(taken.length)]!;
      const say = (what: string): void => void faults.push(`round ${round}, ${manifest.id}: ${what}`);
      const { pauseMs, running } = await rewind(session, manifest, { paused: true });
      if (running) say('it runs');
      truth = await processTruth(machine, truth);
      const differing = await stored.differing(truth, manifest.id, round % 50 === 0);
      for (const page of differing) say(`${page} differs`);
      const bytes = machine.diary().length;
      await machine.qmp.command('cont');
      // The line that was under way may be cut.
      const next = await machine.waitForTick(1, 60_000, bytes);
      if (next.tick > tick + TICKS_OFF || next.lines !== next.tick)
        say(`tick ${next.tick} with ${next.lines} lines, after ${tick}`);
      if (round % options.guestEvery === 0) {
        if ((await machine.guest('lab sum')) !== sum) say('another checksum');
        const beyond = await sectorsFromTheFuture(machine);
        if (beyond > 0) say(`${beyond} bytes from the future on the disk`);
      }
      options.onRound?.(round, pauseMs);
    }
    // The next checkpoint of the session holds the memory of the last rewind, as an increment.
    const last = taken[0]!.manifest;
    await rewind(session, last, { paused: true });
    truth = await processTruth(machine, truth);
    const { checkpointId, kind, compareReason } = await session.checkpoint();
    for (const page of await stored.differing(truth, checkpointId, true))
      faults.push(`the checkpoint after the last round: ${page} differs`);
    if (kind !== 'incremental' || compareReason !== '') faults.push(`it is a ${kind}: ${compareReason}`);
    await machine.qmp.command('cont');
  } finally {
    await session.close();
    await stored.close();
    await repository.close();
  }
  return faults;
}

/** Ends the guest's loads; the next rewind brings them back. */
export async function sectorsFromTheFuture(machine: LabMachine): Promise<number> {
  await machine.guest('lab stop');
  const pair = Number(await machine.guest('cat /tmp/pair'));
  const beyond = await machine.guest(
    `dd if=/dev/vda bs=512 skip=$((${pair} + 2)) count=${LOOK_AHEAD} iflag=direct 2>/dev/null | tr -d '\\0' | wc -c`,
  );
  return Number(beyond);
}
