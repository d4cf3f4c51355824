/** What `cairn status` says. */

import { formatBytes, formatInterval, formatMs, formatTable, printable } from '../../text.js';
import type { ServiceStatus } from './status-file.js';
import { ageMs, dayOf, isLate, percentile, type VmProblem, type VmStatus } from './vm-figures.js';

const MEDIAN = 0.5;
const RARE = 0.99;

export interface VmFields {
  readonly [key: string]: unknown;
  readonly address: string;
  readonly name: string;
  readonly policy: string;
  readonly state: VmStatus['state'];
  readonly lastCheckpointId: string;
  readonly hasCheckpoint: boolean;
  readonly ageMs: number;
  readonly rpoMs: number;
  readonly isLate: boolean;
  readonly pauseP50Ms: number | null;
  readonly pauseP99Ms: number | null;
  readonly checkpoints: number;
  readonly failures: number;
  readonly storedToday: number;
  readonly storedTotal: number;
  readonly problem: VmProblem | null;
}

export interface StatusFields {
  readonly [key: string]: unknown;
  readonly isRunning: boolean;
  /** The service runs, no VM is late or has a problem. */
  readonly isWell: boolean;
  readonly problem: string;
  readonly vms: readonly VmFields[];
}

export function statusFields(
  { vms, problem, isRunning }: ServiceStatus & { readonly isRunning: boolean },
  nowMs: number,
): StatusFields {
  const today = dayOf(nowMs);
  const rows = vms.map((status) => ({
    address: status.address,
    name: status.name,
    policy: status.policy,
    repository: status.repository,
    state: status.state,
    lastCheckpointId: status.lastCheckpointId,
    hasCheckpoint: status.lastMs > 0,
    ageMs: ageMs(status, nowMs),
    rpoMs: status.rpoMs,
    isLate: isLate(status, nowMs),
    pauseP50Ms: percentile(status.pausesMs, MEDIAN) ?? null,
    pauseP99Ms: percentile(status.pausesMs, RARE) ?? null,
    tracker: status.tracker,
    checkpoints: status.checkpoints,
    failures: status.failures,
    storedToday: status.day === today ? status.storedToday : 0,
    storedTotal: status.storedTotal,
    problem: status.problem ?? null,
  }));
  const isWell = isRunning && problem === '' && rows.every((row) => !row.isLate && row.problem === null);
  return { isRunning, isWell, problem, vms: rows };
}

export function statusText({ isRunning, problem, vms }: StatusFields): string {
  const table =
    vms.length === 0
      ? 'no VM of this host has a policy; `cairn run --check` says which policy is for which'
      : formatTable(
          ['vm', 'policy', 'state', 'last', 'age', 'allowed', 'pause p50', 'p99', 'today'],
          vms.map(rowOf),
        );
  return [
    ...(isRunning
      ? []
      : ['the service does not run (systemctl start cairn): this is how it was when it ended']),
    ...(problem === '' ? [] : [`the service goes on with what it had read before: ${printable(problem)}`]),
    table,
    ...vms.flatMap(troubleOf),
  ].join('\n');
}

function rowOf(vm: VmFields): readonly string[] {
  const ms = (value: number | null): string => (value === null ? '-' : formatMs(value));
  return [
    vm.name === '' ? vm.address : vm.name,
    vm.policy,
    vm.isLate ? 'LATE' : vm.state,
    vm.hasCheckpoint ? vm.lastCheckpointId.slice(0, 8) : 'none yet',
    formatInterval(vm.ageMs),
    formatInterval(vm.rpoMs),
    ms(vm.pauseP50Ms),
    ms(vm.pauseP99Ms),
    formatBytes(vm.storedToday),
  ];
}

/** What is wrong, and what helps. */
function troubleOf({ address, problem, isLate: late }: VmFields): readonly string[] {
  if (problem !== null) {
    const hint = problem.hint === '' ? '' : `; ${printable(problem.hint)}`;
    return [`${printable(address)}: ${printable(problem.message)} [${problem.code}]${hint}`];
  }
  return late
    ? [
        `${printable(address)}: no checkpoint came in time, and none failed: raise concurrent or every, or look at quiet-hours`,
      ]
    : [];
}
