/** Steps of the tests of `cairn rewind`. */

import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import type { LabMachine } from '../machine.js';
import { cairn, runCairn, type CliMessage, type CliOptions } from './cairn-cli.js';
import { differingFromStored } from './oracle.js';
import { processTruth } from './process-truth.js';

export type RewindOptions = CliOptions & { readonly repo: string };

/** Far above what a guard needs to resume a VM that it may resume. */
const GUARD_MS = 3000;

export const optionsOf = (machine: LabMachine): RewindOptions => ({
  dir: machine.dir,
  repo: join(machine.dir, 'repo'),
});

export async function checkpoint(machine: LabMachine, ...args: readonly string[]): Promise<CliMessage> {
  const options = optionsOf(machine);
  return cairn(['checkpoint', machine.address, '--repo', options.repo, ...args], options);
}

export const rewindArgs = (
  machine: LabMachine,
  id: unknown,
  args: readonly string[] = [],
): readonly string[] => [
  ...['rewind', machine.address, String(id), '--repo', optionsOf(machine).repo],
  ...args,
];

/** It must go through. @returns its summary */
export const rewound = (machine: LabMachine, id: unknown, ...args: readonly string[]): Promise<CliMessage> =>
  cairn(rewindArgs(machine, id, args), optionsOf(machine));

/** It must be refused. @returns the error */
export async function refusal(
  machine: LabMachine,
  id: unknown,
  ...args: readonly string[]
): Promise<CliMessage> {
  const { messages } = await runCairn(rewindArgs(machine, id, args), optionsOf(machine));
  const last = messages.at(-1);
  if (last?.message_type !== 'error') throw new Error(`it was not refused: ${JSON.stringify(last)}`);
  return last;
}

/** All memory of the stopped VM, held against a checkpoint: pages that differ. */
export async function differing(machine: LabMachine, id: unknown): Promise<readonly string[]> {
  return differingFromStored(await processTruth(machine), optionsOf(machine).repo, String(id));
}

/** Has it run, if it does not. Throws when its counter and its open file do not go on together. */
export async function goOn(machine: LabMachine): Promise<void> {
  const bytes = machine.diary().length;
  if ((await machine.qmp.status()) !== 'running') await machine.qmp.command('cont');
  const { tick, lines } = await machine.waitForTick(1, 60_000, bytes);
  if (lines !== tick) throw new Error(`tick ${tick} with ${lines} lines`);
}

/** Its state once a guard would have resumed it. */
export async function statusLater(machine: LabMachine): Promise<string> {
  const until = Date.now() + GUARD_MS;
  while ((await machine.qmp.status()) !== 'running' && Date.now() < until) await sleep(50);
  return machine.qmp.status();
}
