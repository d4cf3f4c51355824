/**
 * The service: looks which VMs run, has a watcher for each that a policy is for, gives them turns, and keeps what they say.
 *
 *     look ──> VMs that run ──> policy ──> watcher (a process) ──> turns, lines of JSON ──> status
 *
 * A watcher that ends is started again, after a pause that grows while it has no success.
 */

import { ownIdentity } from '../../host/process-identity.js';
import type { RunningVm } from '../../hypervisor/hypervisor.js';
import type { Policy, ServiceConfig } from './config.js';
import { isQuiet } from './quiet-hours.js';
import type { ServiceStatus } from './status-file.js';
import { TurnQueue } from './turn-queue.js';
import { dayOf, isLate, withMessage, type VmStatus } from './vm-figures.js';
import { Watcher, type StartedWatcher, type WatcherEvents } from './watcher.js';

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 60_000;

interface Charge {
  readonly vm: RunningVm;
  readonly policy: Policy;
  status: VmStatus;
  watcher: StartedWatcher | undefined;
  /** It is started again from then on. */
  notBeforeMs: number;
  waitMs: number;
}

export interface ServiceDeps {
  readonly look: () => Promise<readonly RunningVm[]>;
  /** What is printed. */
  readonly say: (fields: Readonly<Record<string, unknown>>, text: string) => void;
  readonly startWatcher?: (args: readonly string[], events: WatcherEvents) => StartedWatcher;
}

export class Service {
  #config: ServiceConfig;
  #problem = '';
  readonly #deps: ServiceDeps;
  readonly #turns: TurnQueue;
  readonly #charges = new Map<string, Charge>();
  /** What an earlier service knew, or this one before it read other policies; by address. */
  readonly #before: Map<string, VmStatus>;
  readonly #leaving = new Set<Promise<void>>();

  /** @param before what an earlier service knew */
  constructor(config: ServiceConfig, before: readonly VmStatus[], deps: ServiceDeps) {
    this.#config = config;
    this.#deps = deps;
    this.#turns = new TurnQueue(config.concurrent);
    this.#before = new Map(before.map((status) => [status.address, status]));
  }

  get config(): ServiceConfig {
    return this.#config;
  }

  get status(): ServiceStatus {
    return {
      service: ownIdentity(),
      writtenMs: Date.now(),
      problem: this.#problem,
      vms: [...this.#charges.values()].map(({ status }) => status),
    };
  }

  /** For people, in one line. */
  get summary(): string {
    const all = [...this.#charges.values()].map(({ status }) => status);
    const nowMs = Date.now();
    const late = all.filter((status) => isLate(status, nowMs)).length;
    const failing = all.filter(({ problem }) => problem !== undefined).length;
    return `${all.filter(({ state }) => state === 'watched').length} VMs watched, ${late} late, ${failing} with a problem`;
  }

  /** Which policy is whose. */
  policiesOf(vms: readonly RunningVm[]): readonly { readonly address: string; readonly policy: string }[] {
    return vms.map((vm) => ({ address: vm.address, policy: policyFor(vm, this.#config)?.name ?? 'none' }));
  }

  /** Follows other policies; watchers of VMs whose policy is the same go on. */
  reload(config: ServiceConfig): void {
    this.#config = config;
    this.#problem = '';
    this.#turns.limit = config.concurrent;
    for (const [address, charge] of this.#charges)
      if (JSON.stringify(policyFor(charge.vm, config)) !== JSON.stringify(charge.policy)) this.#drop(address);
  }

  /** The file could not be read again: all goes on as it was. */
  refuseReload(problem: string): void {
    this.#problem = problem;
  }

  /** Looks once which VMs run, and has watchers for them. */
  async look(): Promise<void> {
    const running = await this.#deps.look();
    const seen = new Set<string>();
    const taken = new Set<string>();
    for (const vm of running) {
      const policy = policyFor(vm, this.#config);
      // One VM may have several addresses.
      if (policy === undefined || taken.has(vm.instance)) continue;
      taken.add(vm.instance);
      seen.add(vm.address);
      this.#care(vm, policy);
    }
    for (const charge of this.#charges.values())
      if (!seen.has(charge.vm.address) && charge.watcher === undefined) this.#isGone(charge);
    this.#turns.next();
  }

  /** Ends all watchers, each between two checkpoints. */
  async end(): Promise<void> {
    for (const address of [...this.#charges.keys()]) this.#drop(address);
    await Promise.all(this.#leaving);
  }

  #care(vm: RunningVm, policy: Policy): void {
    const known = this.#charges.get(vm.address);
    const charge = known ?? this.#newCharge(vm, policy);
    if (known === undefined)
      this.#deps.say({ vm: vm.address, policy: policy.name }, `${vm.address}: policy ${policy.name}`);
    this.#charges.set(vm.address, charge);
    if (charge.status.state === 'gone') charge.notBeforeMs = 0;
    if (charge.watcher !== undefined || Date.now() < charge.notBeforeMs) return;
    charge.status = { ...charge.status, state: 'watched' };
    charge.watcher = this.#start(charge);
  }

  #newCharge(vm: RunningVm, policy: Policy): Charge {
    const nowMs = Date.now();
    const empty: VmStatus = {
      ...{ address: vm.address, name: vm.name, policy: '', repository: '', everyMs: 0, rpoMs: 0 },
      ...{ state: 'waiting', sinceMs: nowMs, lastCheckpointId: '', lastMs: 0, lastKind: '', tracker: '' },
      ...{ pausesMs: [], checkpoints: 0, failures: 0, storedToday: 0, storedTotal: 0, day: dayOf(nowMs) },
      problem: undefined,
    };
    const { name, repository, everyMs, rpoMs } = policy;
    const status: VmStatus = {
      ...(this.#before.get(vm.address) ?? empty),
      ...{ name: vm.name, policy: name, repository, everyMs, rpoMs, state: 'waiting' },
    };
    return { vm, policy, status, watcher: undefined, notBeforeMs: 0, waitMs: FIRST_WAIT_MS };
  }

  #start(charge: Charge): StartedWatcher {
    const { vm, policy } = charge;
    const start = this.#deps.startWatcher ?? ((args, events) => new Watcher(args, events));
    const watcher = start([vm.address, '--repo', policy.repository, ...policy.args], {
      onMessage: (message) => {
        charge.status = withMessage(charge.status, message, Date.now());
        if (typeof message.checkpoint_id === 'string') charge.waitMs = FIRST_WAIT_MS;
        this.#deps.say({ vm: vm.address, ...message }, lineOf(vm, message));
      },
      onWanted: () =>
        this.#turns.want({
          key: vm.address,
          priority: policy.priority,
          mayBegin: () => !isQuiet(policy.quietHours, new Date()),
          give: () => watcher.giveTurn(),
        }),
      onDone: () => this.#turns.done(vm.address),
      onEnd: () => {
        charge.watcher = undefined;
        charge.notBeforeMs = Date.now() + charge.waitMs;
        charge.waitMs = Math.min(2 * charge.waitMs, LONGEST_WAIT_MS);
        if (charge.status.state === 'watched') charge.status = { ...charge.status, state: 'waiting' };
      },
    });
    return watcher;
  }

  #isGone(charge: Charge): void {
    if (charge.status.state === 'gone') return;
    charge.status = { ...charge.status, state: 'gone', problem: undefined };
    charge.waitMs = FIRST_WAIT_MS;
    this.#deps.say({ vm: charge.vm.address, gone: true }, `${charge.vm.address}: does not run any more`);
  }

  #drop(address: string): void {
    const charge = this.#charges.get(address);
    this.#charges.delete(address);
    if (charge !== undefined) this.#before.set(address, charge.status);
    if (charge?.watcher === undefined) return;
    charge.watcher.end();
    const left = charge.watcher.ended.finally(() => this.#leaving.delete(left));
    this.#leaving.add(left);
  }
}

export function policyFor(vm: RunningVm, { policies }: Pick<ServiceConfig, 'policies'>): Policy | undefined {
  return policies.find(({ vms }) => vms.some((pattern) => fits(pattern, vm)));
}

/** A pattern with a colon is one of addresses. */
function fits(pattern: string, { address, name }: RunningVm): boolean {
  const parts = pattern.split('*').map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'));
  return new RegExp(`^${parts.join('.*')}$`, 's').test(pattern.includes(':') ? address : name);
}

function lineOf({ address }: RunningVm, message: Readonly<Record<string, unknown>>): string {
  if (typeof message.checkpoint_id === 'string')
    return `${address}: checkpoint ${message.checkpoint_id} (${String(message.kind)}), pause ${String(message.pause_ms)} ms`;
  if (message.message_type === 'error')
    return `${address}: ${String(message.message)} [${String(message.code)}]`;
  if (Array.isArray(message.removed)) return `${address}: ${message.removed.length} checkpoints forgotten`;
  return typeof message.warning === 'string' ? `${address}: warning: ${message.warning}` : '';
}
