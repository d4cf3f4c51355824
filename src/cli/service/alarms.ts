/**
 * Tells somebody when a VM gets late or its checkpoints fail, and when it is well again: once for each change, by a command of
 * the operator's, by a request to a URL, or by both. What could not be told is tried again.
 *
 *     ok --fails--> failing --checkpoint--> ok        late: older than the policy allows, with nothing that failed
 */

import { CheckpointError, describeError } from '../../errors.js';
import { failureOf, runProgram } from '../../host/run-program.js';
import type { VmFields } from './status-text.js';

export type Condition = 'ok' | 'late' | 'failing';

export interface AlarmTargets {
  /** For `/bin/sh -c`; empty: none. */
  readonly command: string;
  /** Gets a POST with JSON; empty: none. */
  readonly url: string;
}

const COMMAND_LIMIT_MS = 30_000;
const REQUEST_LIMIT_MS = 10_000;
const RETRY_MS = 30_000;

export class Alarms {
  /** What was last told of a VM, by address; one that nothing was told of is well. */
  readonly #told = new Map<string, Condition>();
  readonly #underWay = new Set<string>();
  readonly #notBeforeMs = new Map<string, number>();
  readonly #warn: (text: string) => void;

  /** @param warn is told of what could not be told */
  constructor(warn: (text: string) => void) {
    this.#warn = warn;
  }

  /** Tells what has changed since the last call, and does not wait for that. */
  look(vms: readonly VmFields[], targets: AlarmTargets, nowMs = Date.now()): void {
    if (targets.command === '' && targets.url === '') return;
    for (const vm of vms) {
      const { address } = vm;
      // One that does not run is neither late nor well.
      if (vm.state === 'gone' || this.#underWay.has(address)) continue;
      const condition = conditionOf(vm);
      if (condition === (this.#told.get(address) ?? 'ok')) continue;
      if (nowMs < (this.#notBeforeMs.get(address) ?? 0)) continue;
      this.#underWay.add(address);
      void this.#tell(vm, condition, targets, nowMs);
    }
  }

  async #tell(vm: VmFields, condition: Condition, targets: AlarmTargets, nowMs: number): Promise<void> {
    try {
      if (targets.command !== '') await byCommand(targets.command, vm, condition);
      if (targets.url !== '') await byRequest(targets.url, vm, condition);
      this.#told.set(vm.address, condition);
      this.#notBeforeMs.delete(vm.address);
    } catch (error) {
      this.#notBeforeMs.set(vm.address, nowMs + RETRY_MS);
      this.#warn(`nobody could be told that ${vm.address} is ${condition}: ${describeError(error)}`);
    } finally {
      this.#underWay.delete(vm.address);
    }
  }
}

export function conditionOf({ problem, isLate }: VmFields): Condition {
  if (problem !== null) return 'failing';
  return isLate ? 'late' : 'ok';
}

async function byCommand(command: string, vm: VmFields, condition: Condition): Promise<void> {
  const result = await runProgram('/bin/sh', ['-c', command], {
    ...{ limitMs: COMMAND_LIMIT_MS, stdout: 'ignore', stderr: 'inherit', isShellCommand: true },
    env: {
      ...process.env,
      CAIRN_CONDITION: condition,
      CAIRN_VM: vm.address,
      CAIRN_VM_NAME: vm.name,
      CAIRN_POLICY: vm.policy,
      CAIRN_AGE_S: String(Math.round(vm.ageMs / 1000)),
      CAIRN_CODE: vm.problem?.code ?? '',
      CAIRN_MESSAGE: vm.problem?.message ?? '',
      CAIRN_HINT: vm.problem?.hint ?? '',
    },
  });
  if (result.kind !== 'done') throw new CheckpointError('HOOK_FAILED', failureOf('the command', result));
}

async function byRequest(url: string, vm: VmFields, condition: Condition): Promise<void> {
  const { address, name, policy, ageMs, rpoMs, lastCheckpointId, problem } = vm;
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ condition, address, name, policy, ageMs, rpoMs, lastCheckpointId, problem }),
    redirect: 'error',
    signal: AbortSignal.timeout(REQUEST_LIMIT_MS),
  });
  await response.body?.cancel();
  if (!response.ok) throw new CheckpointError('HOOK_FAILED', `it answered ${response.status}`);
}
