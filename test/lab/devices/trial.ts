/**
 * Trials of devices, in two steps. `look` starts a QEMU with one device that does not run yet: is it to be had
 * here, and does Cairn refuse it? `tryTogether` starts a guest with several that are left, takes a checkpoint,
 * kills the guest and restores it. Every step has a time limit, and whatever happens no machine stays.
 */

import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { attachKvm } from '../../../adapters/kvm/attach.js';
import { isCheckpointError } from '../../../src/errors.js';
import type { Vm, VmReport } from '../../../src/hypervisor/vm.js';
import { LabMachine } from '../machine.js';
import { CairnProcess, type CliMessage } from '../support/cairn-cli.js';
import { scratchDir, type QemuVersion } from '../support/lab-files.js';
import type { OfferedDevice } from './listing.js';
import { setupOf, withSuffix, type BackEnd, type DeviceSetup } from './setups.js';

export type Outcome =
  /** The checkpoint was taken, and the restored guest went on. */
  | 'works'
  /** No checkpoint is taken, and the VM is not touched. */
  | 'refused'
  /** It starts, and nothing speaks against it. */
  | 'not tried'
  /** Neither: something that Cairn should have known beforehand. */
  | 'fails'
  /** The device was not to be had on this host. */
  | 'not here';

export interface Result {
  readonly outcome: Outcome;
  /** Code of the hazard or of the error; empty for what works. */
  readonly code: string;
  /** In words; empty for what works. */
  readonly why: string;
  /** Machine type that the guest had. */
  readonly machine: string;
}

export interface DeviceRow extends Result {
  readonly device: string;
  readonly category: string;
  /** Version of QEMU with that of its package. */
  readonly qemu: string;
  /** Day, in UTC. */
  readonly date: string;
}

/** A device that starts and that nothing speaks against. */
export interface Candidate {
  readonly device: OfferedDevice;
  readonly machine: string;
}

const MEMORY_MIB = 128;
const BOOT_LIMIT_MS = 120_000;
const COMMAND_LIMIT_MS = 90_000;

export async function look(device: OfferedDevice, version: QemuVersion): Promise<Result | Candidate> {
  const dir = scratchDir('dev');
  try {
    const setup = setupOf(device, dir);
    if ('whyNot' in setup) return { outcome: 'not here', code: '', why: setup.whyNot, machine: '' };
    let found: Result | undefined;
    for (const machine of setup.machines) {
      found = await lookOn(machine, setup, dir, version);
      if (found === undefined) return { device, machine };
      if (found.outcome !== 'not here') return found;
    }
    return found!;
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** @returns what is known already; undefined when only a trial can tell */
async function lookOn(
  machine: string,
  setup: DeviceSetup,
  dir: string,
  qemu: QemuVersion,
): Promise<Result | undefined> {
  const backEnd = await setup.startBackEnd?.(dir);
  let vm: LabMachine | undefined;
  try {
    vm = await LabMachine.start({
      ...{ name: 'dev', dir, qemu, memoryMib: MEMORY_MIB, devices: [], noWait: true },
      extraArgs: ['-S', '-machine', machine, ...setup.args],
    });
    const refusal = await refusalOf(vm, dir);
    if (refusal === undefined) return undefined;
    const isKept = vm.isAlive() && (await vm.qmp.status()) === 'prelaunch';
    return { outcome: isKept ? 'refused' : 'fails', ...refusal, machine };
  } catch (error) {
    if (vm !== undefined) throw error;
    const why = error instanceof Error ? error.message : String(error);
    return { outcome: 'not here', code: '', why: tidy(why, dir), machine };
  } finally {
    await vm?.kill();
    backEnd?.end();
    rmSync(join(dir, 'qemu.log'), { force: true });
  }
}

/** What Cairn says to it beforehand. The device state is refused as well where the VM is, which is held here. */
async function refusalOf(
  machine: LabMachine,
  dir: string,
): Promise<{ readonly code: string; readonly why: string } | undefined> {
  const runtimeDir = join(dir, 'runtime');
  mkdirSync(runtimeDir, { recursive: true, mode: 0o700 });
  const vm = await attachKvm(machine.address, { runtimeDir });
  try {
    const { hazards } = await inspected(vm);
    const hazard = hazards.find(({ effect }) => effect === 'refuse');
    const isHad = await vm.deviceState.check().then(
      () => true,
      (error: unknown) => {
        if (isCheckpointError(error, 'VM_UNSUPPORTED')) return false;
        throw error;
      },
    );
    if (!isHad && hazard === undefined)
      throw new Error('its state is refused, and doctor says nothing of it');
    return hazard === undefined ? undefined : { code: hazard.code, why: tidy(hazard.text, dir) };
  } finally {
    await vm.close();
  }
}

/** A VM that cannot be inspected is refused by the code of that. */
async function inspected(vm: Vm): Promise<Pick<VmReport, 'hazards'>> {
  try {
    return await vm.inspect();
  } catch (error) {
    if (!isCheckpointError(error)) throw error;
    return { hazards: [{ code: error.code, text: error.message, effect: 'refuse' }] };
  }
}

/** All of one machine type. When a group does not work, its halves are tried. */
export async function tryTogether(
  group: readonly Candidate[],
  version: QemuVersion,
): Promise<readonly (readonly [Candidate, Result])[]> {
  const result = await tryGroup(group, version);
  if (result.outcome === 'works' || group.length === 1)
    return group.map((candidate) => [candidate, result] as const);
  const half = Math.ceil(group.length / 2);
  return [
    ...(await tryTogether(group.slice(0, half), version)),
    ...(await tryTogether(group.slice(half), version)),
  ];
}

async function tryGroup(group: readonly Candidate[], qemu: QemuVersion): Promise<Result> {
  const dir = scratchDir('dev');
  const { machine } = group[0]!;
  const setups = group.map(({ device }, i) => {
    const setup = setupOf(device, dir) as DeviceSetup;
    return group.length === 1 ? setup : withSuffix(setup, i);
  });
  const backEnds: BackEnd[] = [];
  const startBackEnds = async (): Promise<void> => {
    for (const backEnd of backEnds.splice(0)) backEnd.end();
    for (const { startBackEnd } of setups) {
      const started = await startBackEnd?.(dir);
      if (started !== undefined) backEnds.push(started);
    }
  };
  const found = (outcome: Outcome, code = '', why = ''): Result => ({
    ...{ outcome, code, why: tidy(why, dir), machine },
  });
  const failed = (step: string, messages: readonly CliMessage[]): Result => {
    const last = messages.at(-1);
    const text = typeof last?.message === 'string' ? last.message : 'it ended without a message';
    return found('fails', typeof last?.code === 'string' ? last.code : 'none', `${step}: ${text}`);
  };
  let guest: LabMachine | undefined;
  let step = 'start';
  try {
    await startBackEnds();
    guest = await LabMachine.start({
      ...{ name: 'dev', dir, qemu, memoryMib: MEMORY_MIB, devices: [], noWait: true },
      extraArgs: ['-machine', machine, ...setups.flatMap(({ args }) => args)],
    });
    step = 'boot';
    const repo = join(dir, 'repo');
    await Promise.all([runLimited(['init', '--repo', repo], dir), guest.waitForTick(2, BOOT_LIMIT_MS)]);
    step = 'checkpoint';
    const taken = await runLimited(['checkpoint', guest.address, '--repo', repo, '--memory-only'], dir);
    if (!guest.isAlive()) return found('fails', 'VM_GONE', `QEMU ended in the checkpoint: ${guest.log()}`);
    if (taken.exitCode !== 0) return failed(step, taken.messages);
    await guest.waitForProgress();
    await guest.kill();
    step = 'restore';
    await startBackEnds();
    const seenBytes = guest.diary().length;
    const restored = await runLimited(['restore', 'latest', '--repo', repo], dir);
    if (restored.exitCode !== 0) return failed(step, restored.messages);
    guest = await LabMachine.adopt('dev', dir, Number(restored.messages.at(-1)?.pid));
    await guest.waitForTick(1, 60_000, seenBytes);
    await guest.waitForProgress(60_000);
    return found('works');
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    const isDead = step !== 'start' && guest?.isAlive() === false;
    return found('fails', isDead ? 'VM_GONE' : 'NO_PROGRESS', `${step}: ${text}`);
  } finally {
    await guest?.kill();
    for (const backEnd of backEnds) backEnd.end();
    rmSync(dir, { recursive: true, force: true });
  }
}

/** A command that is killed at its limit. */
async function runLimited(args: readonly string[], dir: string): Promise<Awaited<CairnProcess['ended']>> {
  const running = new CairnProcess(args, { dir });
  const timer = setTimeout(() => running.child.kill('SIGKILL'), COMMAND_LIMIT_MS);
  try {
    return await running.ended;
  } finally {
    clearTimeout(timer);
  }
}

/** The last line, without what differs from run to run. */
function tidy(text: string, dir: string): string {
  const line = text.trim().split('\n').at(-1) ?? '';
  return line
    .replaceAll(dir, 'DIR')
    .replace(/^QEMU does not answer: /, '')
    .replace(/^.*qemu-system-x86_64: /, '')
    .replace(/^-device \S+: /, '')
    .slice(0, 200);
}
