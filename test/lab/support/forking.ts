/** Steps of the tests of `cairn fork`. */

import { existsSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { LabMachine } from '../machine.js';
import { cairn, runCairn, type CliMessage, type CliResult } from './cairn-cli.js';
import { optionsOf } from './rewinding.js';

/** What a summary of `cairn fork` says of a child. */
export interface Forked {
  readonly name: string;
  readonly vm_address: string;
  readonly pid: number;
  readonly folder: string;
  readonly uuid: string;
  readonly macs: readonly string[];
  readonly generation_id: string;
}

/** In which the children of a machine get their folders. */
export const forksOf = (machine: LabMachine): string => join(machine.dir, 'forks');

export function forkArgs(machine: LabMachine, from: unknown, args: readonly string[]): readonly string[] {
  const { repo } = optionsOf(machine);
  return ['fork', String(from), '--name', 'kid', '--dir', forksOf(machine), '--repo', repo, ...args];
}

/** It must go through. @returns its summary, and the children to be driven and ended by the test */
export async function forked(
  machine: LabMachine,
  from: unknown,
  ...args: readonly string[]
): Promise<{
  readonly summary: CliMessage;
  readonly children: readonly Forked[];
  readonly kids: LabMachine[];
}> {
  const summary = await cairn(forkArgs(machine, from, args), optionsOf(machine));
  const children = summary.children as readonly Forked[];
  const kids: LabMachine[] = [];
  for (const { name, folder, pid } of children) kids.push(await LabMachine.adopt(name, folder, pid));
  return { summary, children, kids };
}

/** Whatever becomes of it. */
export function tryFork(machine: LabMachine, from: unknown, ...args: readonly string[]): Promise<CliResult> {
  return runCairn(forkArgs(machine, from, args), optionsOf(machine));
}

/** Ends them, with their folders and what they stood on. */
export async function endKids(machine: LabMachine, kids: readonly LabMachine[]): Promise<void> {
  for (const kid of kids) await kid.destroy();
  for (const name of left(machine)) {
    if (!name.endsWith('.disks')) throw new Error(`${name} is left`);
    rmSync(join(forksOf(machine), name), { recursive: true });
  }
}

/** What is in the folder of the children. */
export function left(machine: LabMachine): readonly string[] {
  return existsSync(forksOf(machine)) ? readdirSync(forksOf(machine)) : [];
}

/** Processes that have a template of a fork open. */
export function templateHolders(): readonly number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter(
      (pid) =>
        Number.isInteger(pid) && descriptorsOf(pid).some((target) => target.includes('/memfd:cairn-fork-')),
    );
}

function descriptorsOf(pid: number): readonly string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).map((name) => readlinkSync(`/proc/${pid}/fd/${name}`));
  } catch {
    return [];
  }
}

/** Of main memory: pages that were copied, because the machine has written to them. */
export function ownBytes({ pid }: Pick<LabMachine, 'pid'>): number {
  let isTemplate = false;
  let kib = 0;
  for (const line of readFileSync(`/proc/${pid}/smaps`, 'latin1').split('\n')) {
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) isTemplate = line.includes('/memfd:cairn-fork-');
    const own = /^Anonymous:\s+(\d+) kB/.exec(line)?.[1];
    if (isTemplate && own !== undefined) kib += Number(own);
  }
  return kib * 1024;
}
