/**
 * How long the VM stands still, and how long the whole takes, for what QEMU itself offers, beside Cairn's increments of the same
 * guest with the same writes in between. All of them take turns. Each peer runs with the flags that serve it best:
 *
 *     savevm                 HMP savevm into a qcow2 disk; the VM stands still all the time
 *     migrate, stopped       `stop`, migrate to a file, `cont`, as `virsh save` does it
 *     migrate, live          migrate to a file while the VM runs; it stands still for the last round and until `cont`
 *     mapped-ram             the same on QEMU 10.0 with mapped-ram and multifd
 *     background-snapshot    userfaultfd write protection; on a guest of its own, as it cannot share that with Cairn
 */

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import { LabMachine } from '../../test/lab/machine.js';
import type { QemuVersion } from '../../test/lab/support/lab-files.js';
import { LiveGuest, rewrite } from '../live-guest.js';
import { againstPeer, median, type BenchContext, type BenchRow } from '../rows.js';

const MEMORY_MIB = 1024;
const FILL_MIB = 384;
const DIRTY_MIB = 18;

interface Cost {
  readonly pauseMs: number;
  readonly totalMs: number;
}

interface Peer {
  readonly name: string;
  readonly save: (machine: LabMachine) => Promise<Cost>;
}

export async function* pausePeerRows(context: BenchContext): AsyncGenerator<BenchRow> {
  yield* besideCairn(
    context,
    '7.2',
    [
      { name: 'QEMU savevm', save: saveVm },
      { name: 'QEMU migrate to a file, stopped', save: (machine) => migrateStopped(machine) },
      { name: 'QEMU migrate to a file, live', save: (machine) => migrateLive(machine, execUri) },
    ],
    context.quick ? 1 : 0.55,
  );
  // Two more guests to boot, which a quick run has no time for.
  if (context.quick) return;
  yield* besideCairn(
    context,
    '10.0',
    [
      {
        name: 'QEMU migrate to a file, live, mapped-ram, multifd',
        save: (machine) => migrateLive(machine, fileUri),
      },
    ],
    1,
    async (machine) => {
      await setCapabilities(machine, { 'mapped-ram': true, multifd: true });
      await machine.qmp.command('migrate-set-parameters', { 'multifd-channels': 2 });
    },
  );
}

/** Cairn and the peers on one guest, and a background snapshot on another of the same kind. */
async function* besideCairn(
  context: BenchContext,
  qemu: QemuVersion,
  peers: readonly Peer[],
  /** Of the budget, at the end of this. */
  share: number,
  prepare: (machine: LabMachine) => Promise<void> = () => Promise.resolve(),
): AsyncGenerator<BenchRow> {
  const turns = context.quick ? 2 : 15;
  const workload = `1 GiB guest, ${DIRTY_MIB} MiB rewritten in between, QEMU ${qemu}`;
  context.progress(`pause: booting QEMU ${qemu} for Cairn and its peers`);
  const costs = new Map<string, Cost[]>([['cairn', []]]);
  const note = (name: string, cost: Cost): void => void costs.set(name, [...(costs.get(name) ?? []), cost]);

  const guest = await LiveGuest.start({
    memoryMib: MEMORY_MIB,
    fillMib: FILL_MIB,
    qemu,
    devices: ['disk', 'net', 'balloon', 'vga'],
    session: { memoryOnly: true },
  });
  try {
    await guest.session.checkpoint();
    // The capabilities go to QEMU's migration, which Cairn uses for the device state: only around each peer's turn.
    for (let turn = 0; turn < turns && !(turn >= 2 && context.timeIsUp(share - 0.15)); turn++) {
      context.progress(`pause: QEMU ${qemu}, turn ${turn + 1} of ${turns}`);
      await guest.dirty(DIRTY_MIB);
      note('cairn', await guest.session.checkpoint());
      for (const peer of peers) {
        await guest.dirty(DIRTY_MIB);
        await prepare(guest.machine);
        note(peer.name, await peer.save(guest.machine));
        await setCapabilities(guest.machine, {});
      }
    }
  } finally {
    await guest.destroy();
  }

  const background = `QEMU background-snapshot to a file`;
  const alone = await LabMachine.start({
    name: 'bench',
    memoryMib: MEMORY_MIB,
    qemu,
    devices: ['disk', 'net', 'vga'],
  });
  try {
    await alone.guest(`lab fill ${FILL_MIB}`, 900_000);
    for (let turn = 0; turn < turns && !(turn >= 2 && context.timeIsUp(share)); turn++) {
      context.progress(`pause: QEMU ${qemu}, background snapshot ${turn + 1} of ${turns}`);
      await rewrite(alone, DIRTY_MIB, turn + 1);
      await setCapabilities(alone, { 'background-snapshot': true });
      note(background, await migrateLive(alone, execUri));
    }
  } finally {
    await alone.destroy();
  }

  const own = costs.get('cairn')!;
  for (const peer of [...peers.map(({ name }) => name), background]) {
    const theirs = costs.get(peer)!;
    const row = { area: 'pause', workload, unit: 'ms', peer } as const;
    yield againstPeer(
      {
        ...row,
        name: 'pause, p50',
        value: median(own.map(({ pauseMs }) => pauseMs)),
        peerValue: median(theirs.map(({ pauseMs }) => pauseMs)),
      },
      'shorter',
      (ratio) => ratio < 1,
    );
    yield againstPeer(
      {
        ...row,
        name: 'whole time, p50',
        value: median(own.map(({ totalMs }) => totalMs)),
        peerValue: median(theirs.map(({ totalMs }) => totalMs)),
      },
      'shorter',
      (ratio) => ratio < 1,
    );
  }
}

async function saveVm({ qmp }: LabMachine): Promise<Cost> {
  const started = performance.now();
  const said = await qmp.hmp('savevm bench');
  const totalMs = performance.now() - started;
  if (said.trim() !== '') throw new Error(`savevm: ${said}`);
  await qmp.hmp('delvm bench');
  return { pauseMs: totalMs, totalMs };
}

async function migrateStopped(machine: LabMachine): Promise<Cost> {
  const started = performance.now();
  await machine.qmp.command('stop');
  await migrate(machine, execUri);
  await machine.qmp.command('cont');
  const totalMs = performance.now() - started;
  return { pauseMs: totalMs, totalMs };
}

/** The pause is what QEMU reports as downtime, and the time until `cont` has answered: nobody continues a source sooner. */
async function migrateLive(machine: LabMachine, uriOf: (path: string) => string): Promise<Cost> {
  const started = performance.now();
  const { downtimeMs, wasStopped } = await migrate(machine, uriOf);
  const continuing = performance.now();
  if (wasStopped) await machine.qmp.command('cont');
  const ended = performance.now();
  return { pauseMs: downtimeMs + ended - continuing, totalMs: ended - started };
}

async function migrate(
  machine: LabMachine,
  uriOf: (path: string) => string,
): Promise<{ readonly downtimeMs: number; readonly wasStopped: boolean }> {
  const { qmp } = machine;
  const path = join(machine.dir, 'peer-save');
  await qmp.command('migrate-set-parameters', { 'max-bandwidth': 0x7fffffff });
  await qmp.command('migrate', { uri: uriOf(path) });
  for (;;) {
    const state = (await qmp.command('query-migrate')) as { status?: string; downtime?: number };
    if (state.status === 'completed') {
      rmSync(path);
      const wasStopped = (await qmp.status()) !== 'running';
      return { downtimeMs: state.downtime ?? 0, wasStopped };
    }
    if (state.status === 'failed' || state.status === 'cancelled')
      throw new Error(`migrate: ${JSON.stringify(state)}`);
    await sleep(2);
  }
}

function execUri(path: string): string {
  return `exec:cat > ${path}`;
}

function fileUri(path: string): string {
  return `file:${path}`;
}

/** Exactly these; the others that peers use are switched off. */
async function setCapabilities(machine: LabMachine, on: Readonly<Record<string, boolean>>): Promise<void> {
  const known = (await machine.qmp.command('query-migrate-capabilities')) as { capability: string }[];
  const capabilities = ['mapped-ram', 'multifd', 'background-snapshot']
    .filter((capability) => known.some((entry) => entry.capability === capability))
    .map((capability) => ({ capability, state: on[capability] ?? false }));
  await machine.qmp.command('migrate-set-capabilities', { capabilities });
}
