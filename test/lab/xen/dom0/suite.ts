/** Runs in dom0: the scenarios of the Xen lab. */

import { spawnSync } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { FAULT_POINTS, type FaultPoint } from '../../../../src/checkpoint/fault-points.js';
import { CairnProcess } from '../../support/cairn-cli.js';
import { GuestChain, type Taken } from './chain.js';
import { compare, type Compared } from './comparison.js';
import { check, runScenarios, type Context, type Figures, type Scenario } from './harness.js';
import { remusScenario } from './remus.js';
import { ScreenViewer } from './screen-viewer.js';
import { answersPing, startTraffic, xl, XenGuest, type GuestOptions } from './xen-guest.js';

const LEAVE_SUSPENDED = fileURLToPath(new URL('./leave-suspended.js', import.meta.url));

/** The short form of everything: base, ballooning within an epoch, killed in the stop, comparison, export, restore. */
const short: Scenario = {
  name: 'short',
  run: async (context) => {
    const guest = await XenGuest.start({ name: 'short', churnKib: 128 });
    const chain = await GuestChain.open(guest, context);
    check((await chain.checkpoint()).scope === 'base', 'the first is a base');
    await balloon(guest, 100);
    await balloon(guest, 128);
    await guest.countOn(2);
    const increment = await chain.checkpoint();
    check(increment.summary.compareReason === '', 'the log-dirty bitmap is trusted');
    await chain.closeSession();
    await killedAt(chain, context, 'duringCopy');
    const last = await chain.checkpoint();
    check(last.summary.compareReason !== '', 'after a kill all pages are compared');
    await chain.closeSession();
    const exportBytes = await chain.verifyExport(last);
    guest.destroy();
    await chain.restore(last);
    guest.destroy();
    return { exportBytes, checkpoints: figuresOf(chain.taken) };
  },
};

/** The least that shows whether all parts fit together: one checkpoint, one restore. `smoke` is run with every `npm test`. */
function smokeScenario(name: string, type: GuestOptions['type']): Scenario {
  return {
    name,
    run: async (context) => {
      const guest = await XenGuest.start({ name, type });
      const chain = await GuestChain.open(guest, context);
      const taken = await chain.checkpoint();
      await chain.closeSession();
      const stateRecords = await chain.stateRecords(taken);
      guest.destroy();
      await chain.restore(taken);
      guest.destroy();
      return { stateRecords, checkpoints: figuresOf(chain.taken) };
    },
  };
}

/** What every adapter keeps to. Loaded only where it is run: its assertions take the emulated dom0 some seconds. */
function contractScenario(name: string, type: NonNullable<GuestOptions['type']>): Scenario {
  return {
    name,
    run: async (context) => (await import('./vm-contract.js')).vmContract(name, type, context),
  };
}

/** Memory load, ballooning, restarts of Cairn, restores from first, middle and last. */
function chainScenario(name: string, vcpus: number): Scenario {
  return {
    name,
    run: async (context) => {
      const guest = await XenGuest.start({ name, vcpus, churnKib: 1024 });
      const chain = await GuestChain.open(guest, context);
      const first = await chain.checkpoint();
      for (let i = 0; i < 3; i++) {
        await guest.countOn(2);
        const taken = await chain.checkpoint();
        check(taken.summary.compareReason === '', 'the log-dirty bitmap is trusted');
      }
      const middle = chain.taken.at(-1)!;
      // Another Cairn goes on with the bitmap that the first one armed.
      await chain.closeSession();
      await guest.countOn(2);
      const next = await chain.checkpoint();
      check(
        next.summary.compareReason === '',
        `it is trusted across a restart: ${next.summary.compareReason}`,
      );
      // Across epochs.
      await balloon(guest, 90);
      await guest.countOn(2);
      await chain.checkpoint();
      await balloon(guest, 128);
      await guest.countOn(3);
      await chain.checkpoint();
      // Within one: the number of pages tells nothing, and no bit tells.
      await balloon(guest, 96);
      await balloon(guest, 128);
      await guest.countOn(3);
      await chain.checkpoint();
      await guest.countOn(2);
      const last = await chain.checkpoint();
      await chain.closeSession();
      const exportBytes = await chain.verifyExport(last);
      for (const from of [first, middle, last]) {
        guest.destroy();
        await chain.restore(from);
        check(guest.ticks().at(-1)?.cpus === vcpus, `all ${vcpus} processors run`);
      }
      guest.destroy();
      return { vcpus, exportBytes, checkpoints: figuresOf(chain.taken) };
    },
  };
}

/**
 * A PV guest: nothing tracks it, so all of its pages are compared in each stop. One processor more than runs is there to be
 * plugged: a restore must leave it unplugged.
 */
function pvScenario(name: string, vcpus: number): Scenario {
  return {
    name,
    run: async (context) => {
      const guest = await XenGuest.start({
        name,
        type: 'pv',
        vcpus,
        churnKib: 1024,
        extra: [`maxvcpus=${vcpus + 1}`],
      });
      const chain = await GuestChain.open(guest, context);
      await doctorSaysPv(chain, context);
      const first = await chain.checkpoint();
      check(first.scope === 'base', 'the first is a base');
      const increment = async (): Promise<void> => {
        const { summary } = await chain.checkpoint();
        check(summary.kind === 'incremental' && summary.tracker === 'compare', 'it is compared');
        check(summary.compareReason.includes('PV'), `and says why: ${summary.compareReason}`);
      };
      for (let i = 0; i < 2; i++) {
        await guest.countOn(2);
        await increment();
      }
      // Across epochs, by another process.
      await chain.closeSession();
      await balloon(guest, 90);
      await guest.countOn(2);
      await increment();
      await balloon(guest, 128);
      await guest.countOn(2);
      await increment();
      const middle = chain.taken.at(-1)!;
      // Within one.
      await balloon(guest, 96);
      await balloon(guest, 128);
      await guest.countOn(2);
      await increment();
      await chain.closeSession();
      const resumedMs: Record<string, number> = {};
      for (const point of KILLED_IN_THE_STOP) {
        resumedMs[point] = await killedAt(chain, context, point);
        // The table of frames that the killed one left is of another memory by now.
        await balloon(guest, point === 'afterPause' ? 100 : 128);
        await increment();
        await chain.closeSession();
      }
      const last = chain.taken.at(-1)!;
      const exportBytes = await chain.verifyExport(last);
      for (const from of [first, middle, last]) {
        guest.destroy();
        await chain.restore(from);
        check(guest.ticks().at(-1)?.cpus === vcpus, `${vcpus} processors run`);
      }
      guest.destroy();
      await chain.restoreAs(last, `${name}-renamed`);
      return { vcpus, exportBytes, resumedMs, checkpoints: figuresOf(chain.taken) };
    },
  };
}

/**
 * A guest with a device model, through its whole life: base and increments under load, another process, ballooning within an epoch, kill -9 in the stop,
 * export, restores.
 */
function hvmScenario(name: string, options: Omit<GuestOptions, 'name' | 'type'>): Scenario {
  return {
    name,
    run: async (context) => {
      const guest = await XenGuest.start({ name, type: 'hvm', churnKib: 512, ...options });
      const hasDisk = options.disk !== undefined;
      if (hasDisk) check(guest.ticks().at(-1)?.disk === 'ok', 'the guest has its disk');
      // Also of a guest that has no other card than an emulated one.
      const hasNetwork = options.emulatedDisk !== true;
      if (hasNetwork) check(await answersPing(), 'the guest answers over its network');
      const endTraffic = hasNetwork ? startTraffic() : () => undefined;
      const isShown = options.graphics !== undefined || options.isPlain === true;
      const viewer = isShown ? new ScreenViewer() : undefined;
      const chain = await GuestChain.open(guest, context);
      const trusted = async (): Promise<void> => {
        await guest.countOn(2);
        const { summary } = await chain.checkpoint();
        check(summary.compareReason === '', `the log-dirty bitmap is trusted: ${summary.compareReason}`);
        check((await guest.deviceModelStatus()) === 'running', 'its device model runs on');
      };
      const first = await chain.checkpoint();
      check(first.scope === 'base', 'the first is a base');
      await trusted();
      await trusted();
      // Another Cairn goes on with the bitmap that the first one armed.
      await chain.closeSession();
      await trusted();
      const middle = chain.taken.at(-1)!;
      // libxl takes the memory of a graphics card off the target, so that another size comes out than was asked for.
      if (options.isUnaware !== true && !isShown) {
        await balloon(guest, 100);
        await balloon(guest, 128);
      }
      await trusted();
      await chain.closeSession();
      const resumedMs: Record<string, number> = {};
      for (const point of KILLED_IN_THE_STOP) {
        resumedMs[point] = await killedAt(chain, context, point);
        check((await guest.deviceModelStatus()) === 'running', `its device model runs on after ${point}`);
        const { summary } = await chain.checkpoint();
        check(summary.compareReason !== '', 'after a kill all pages are compared');
        await chain.closeSession();
      }
      endTraffic();
      await leftSuspended(chain, context);
      if (viewer !== undefined) {
        context.say(`${viewer.receivedBytes} bytes of its screen were looked at`);
        check(viewer.receivedBytes > 0, 'its screen was looked at');
        viewer.close();
      }
      const last = chain.taken.at(-1)!;
      const exportBytes = await chain.verifyExport(last);
      for (const from of [first, middle, last]) {
        guest.destroy();
        await chain.restore(from);
        check((await guest.deviceModelStatus()) === 'running', 'its device model runs');
        if (hasDisk) check(guest.ticks().at(-1)?.disk === 'ok', 'its disk works on');
        if (hasNetwork) check(await answersPing(), 'it answers over its network');
        check(guest.ticks().at(-1)?.cpus === (options.vcpus ?? 1), 'all processors run');
      }
      guest.destroy();
      return { exportBytes, resumedMs, checkpoints: figuresOf(chain.taken) };
    },
  };
}

const KILLED_IN_THE_STOP: readonly FaultPoint[] = ['afterPause', 'duringCopy', 'beforeResume'];

/** It says beforehand what a checkpoint of a PV guest costs. */
async function doctorSaysPv({ guest }: GuestChain, { dir, say }: Context): Promise<void> {
  const { exitCode, messages } = await new CairnProcess(['doctor', guest.address], { dir }).ended;
  const { chosen, hazards } = messages.at(-1) as unknown as {
    readonly chosen: string;
    readonly hazards: readonly { readonly code: string; readonly text: string }[];
  };
  say(`doctor: ${chosen}, ${JSON.stringify(hazards)}`);
  check(exitCode === 0 && chosen === 'compare', 'doctor has nothing against it');
  check(
    hazards.some(({ code }) => code === 'XEN_PV'),
    'and says what it costs',
  );
}

/** Backends in dom0 write to the guest's memory, in each epoch and in each stop: packets, and requests of a disk. */
function ioScenario(
  name: string,
  disk: GuestOptions['disk'],
  vcpus: number,
  type: GuestOptions['type'] = 'pvh',
): Scenario {
  return {
    name,
    run: async (context) => {
      const guest = await XenGuest.start({ name, type, vcpus, churnKib: 64, disk });
      check(guest.ticks().at(-1)?.disk === 'ok', 'the guest has its disk');
      check(await answersPing(), 'the guest answers over its network');
      const endTraffic = startTraffic();
      const chain = await GuestChain.open(guest, context);
      try {
        for (let i = 0; i < 5; i++) {
          await chain.checkpoint();
          await guest.countOn(1);
        }
      } finally {
        endTraffic();
      }
      await chain.closeSession();
      for (const taken of [chain.taken[0]!, chain.taken[2]!, chain.taken[4]!]) {
        guest.destroy();
        await chain.restore(taken);
        check(guest.ticks().at(-1)?.disk === 'ok', 'its disk works on');
        check(await answersPing(), 'it answers over its network');
      }
      guest.destroy();
      return { checkpoints: figuresOf(chain.taken) };
    },
  };
}

/** A disk in a qcow2 image or on a logical volume, snapshotted in each stop and rolled back with each restore. */
function diskScenario(
  name: string,
  options: Omit<GuestOptions, 'name'> & { readonly disk: 'qcow2' | 'volume' },
  inTheWay: string,
): Scenario {
  return {
    name,
    run: async (context) => {
      const guest = await XenGuest.start({ name, churnKib: 64, ...options });
      check(guest.ticks().at(-1)?.disk === 'ok', 'the guest has its disk');
      // From here on each place of the disk has been written to.
      await guest.countOn(4);
      const chain = await GuestChain.open(guest, context, true);
      for (let i = 0; i < 4; i++) {
        const { summary } = await chain.checkpoint();
        check(summary.diskSnapshots === 1, 'its disk is snapshotted');
        await guest.countOn(2);
      }
      await chain.closeSession();
      const [first, second, , last] = chain.taken;
      let refused = '';
      await chain.restoreAs(last!, `${name}-beside`).catch((error: unknown) => (refused = String(error)));
      check(refused.includes(inTheWay), `not beside the one that uses the disk: ${refused}`);
      for (const from of [last!, first!, second!]) {
        guest.destroy();
        await chain.restore(from);
        await guest.countOn(4);
        check(guest.ticks().at(-1)?.disk === 'ok', 'its disk is that of the checkpoint, and works on');
      }
      // And the check can fail: memory of the first on the disk of the second, which has run on.
      guest.destroy();
      await chain.restoreOnOtherDisks(first!);
      guest.destroy();
      return { checkpoints: figuresOf(chain.taken) };
    },
  };
}

const KILLED_BEFORE_RESUME: readonly FaultPoint[] = [
  'afterHarvest',
  'duringRound',
  'afterPause',
  'duringCopy',
  'beforeResume',
];
const KILLED_AFTER_RESUME: readonly FaultPoint[] = [
  'afterResume',
  'duringEncode',
  'indexDurable',
  'manifestDurable',
  'ledgerWritten',
];

/** kill -9 in each phase: the guest runs on, and the next checkpoint holds all of its memory. */
function killedScenario(name: string, points: readonly FaultPoint[]): Scenario {
  return {
    name,
    run: async (context) => {
      const guest = await XenGuest.start({ name, churnKib: 256 });
      const chain = await GuestChain.open(guest, context);
      await chain.checkpoint();
      await chain.closeSession();
      const resumedMs: Record<string, number> = {};
      for (const point of points) {
        await guest.countOn(1);
        resumedMs[point] = await killedAt(chain, context, point);
        const { summary } = await chain.checkpoint();
        await chain.closeSession();
        context.say(`after ${point}: ${summary.compareReason || 'trusted'}`);
        check(
          (summary.compareReason === '') === (point === 'ledgerWritten'),
          `all pages are compared after ${point}`,
        );
      }
      const last = chain.taken.at(-1)!;
      guest.destroy();
      await chain.restore(last);
      guest.destroy();
      return { resumedMs, checkpoints: figuresOf(chain.taken) };
    },
  };
}

/** Somebody else saves or migrates the domain between two checkpoints, and takes the bitmap with it. */
function foreignScenario(name: string, options: Omit<GuestOptions, 'name'> = {}): Scenario {
  return { name, run: (context) => foreign(context, { name, churnKib: 256, ...options }) };
}

async function foreign(context: Context, options: GuestOptions): Promise<Figures> {
  const guest = await XenGuest.start(options);
  const chain = await GuestChain.open(guest, context);
  await chain.checkpoint();
  const restoreImported = await savedAndImported(chain);
  const after = await chain.checkpoint();
  check(after.summary.compareReason !== '', 'after xl save -c all pages are compared');
  await guest.countOn(1);
  const next = await chain.checkpoint();
  check(next.summary.compareReason === '', 'and then the bitmap is trusted again');
  await chain.closeSession();
  guest.destroy();
  // Under a new name and uuid, beside nothing; and the old name is free for a second one.
  await chain.restoreAs(next, `${guest.name}2`);
  await restoreImported();
  guest.destroy();
  return { checkpoints: figuresOf(chain.taken) };
}

/** `xl save -c` of the running guest by somebody else, and the file imported. @returns what restores it */
async function savedAndImported(chain: GuestChain): Promise<() => Promise<void>> {
  const { guest } = chain;
  await guest.countOn(1);
  const ticked = guest.lastTick();
  xl('save', '-c', guest.name, '/tmp/foreign.xl');
  const restoreImported = await chain.import('/tmp/foreign.xl', [ticked, guest.lastTick()]);
  rmSync('/tmp/foreign.xl');
  await guest.countOn(1);
  return restoreImported;
}

/** A PV guest that `xl save -c` wrote: imported, restored, counted on. */
const pvForeign: Scenario = {
  name: 'pv-foreign',
  run: async (context) => {
    const guest = await XenGuest.start({ name: 'pv-foreign', churnKib: 256, type: 'pv' });
    const chain = await GuestChain.open(guest, context);
    await chain.checkpoint();
    const restoreImported = await savedAndImported(chain);
    await chain.checkpoint();
    await chain.closeSession();
    guest.destroy();
    await restoreImported();
    guest.destroy();
    return { checkpoints: figuresOf(chain.taken) };
  },
};

/** Not a test: figures for bench/results. */
function comparison(memoryMib: number, load: Compared['load']): Scenario {
  const name = `compare-${memoryMib}-${load}`;
  return { name, run: (context) => compare(context, { name, memoryMib, load }) };
}

async function balloon(guest: XenGuest, mib: number): Promise<void> {
  xl('mem-set', guest.name, String(mib));
  // The guest's balloon driver waits for up to half a minute when it could not have a page.
  const until = Date.now() + 300_000;
  while (Math.abs(guest.memoryMib() - mib) > 1) {
    if (Date.now() > until) throw new Error(`the guest has ${guest.memoryMib()} MiB instead of ${mib}`);
    await sleep(200);
  }
}

/** A Cairn that kills itself there. @returns how long after its death the guest counted on, in ms */
async function killedAt(chain: GuestChain, { dir, say }: Context, point: FaultPoint): Promise<number> {
  const cairn = new CairnProcess(
    // A tiny budget makes live rounds happen, so that their fault point is passed.
    ['checkpoint', chain.guest.address, '--repo', chain.repositoryPath, '--memory-only', '--max-pause', '1'],
    { dir, env: { CAIRN_FAULT_POINT: String(FAULT_POINTS[point]) } },
  );
  const { signal, stderr } = await cairn.ended;
  check(signal === 'SIGKILL', `it died at ${point}: ${stderr}`);
  const died = Date.now();
  await chain.guest.countOn(1, 60_000);
  const tookMs = Date.now() - died;
  say(`killed at ${point}, the guest counted on after ${tookMs} ms`);
  check(!chain.guest.state().includes('s'), 'the guest is not suspended');
  return tookMs;
}

/** Cairn and its guard were both killed in the stop of a guest with a device model: the next Cairn lets both go on. */
async function leftSuspended({ guest, runtimeDir }: GuestChain, { dir, say }: Context): Promise<void> {
  const { signal } = spawnSync(process.execPath, [
    '--no-warnings',
    LEAVE_SUSPENDED,
    guest.address,
    runtimeDir,
  ]);
  check(signal === 'SIGKILL', 'it died in the stop');
  const tick = guest.lastTick();
  await sleep(3000);
  check(guest.state().includes('s') && guest.lastTick() <= tick + 1, 'the guest is suspended');
  check((await guest.deviceModelStatus()) === 'paused', 'and its device model stands still');
  const { exitCode } = await new CairnProcess(['doctor', guest.address], { dir }).ended;
  check(exitCode === 0, 'doctor has nothing against it');
  await guest.countOn(1);
  check((await guest.deviceModelStatus()) === 'running', 'the device model runs on');
  say('doctor has resumed the guest and its device model');
}

function figuresOf(taken: readonly Taken[]): readonly Figures[] {
  return taken.map(({ scope, oracle, stopMs, summary }) => ({
    scope,
    ...oracle,
    stopMs,
    totalMs: summary.totalMs,
    rounds: summary.rounds,
    dirtyPages: summary.dirtyPages,
    pausePages: summary.pausePages,
    storedBytes: summary.storedBytes,
    compareReason: summary.compareReason,
  }));
}

if (!existsSync('/proc/xen/capabilities')) throw new Error('this runs in dom0 of the lab');
// One emulated processor for all: a guest that writes without end must not take half of it from what is tested here.
xl('sched-credit2', '-d', 'Domain-0', '-w', '4096');
await runScenarios(
  [
    smokeScenario('smoke', 'pvh'),
    short,
    contractScenario('contract-pvh', 'pvh'),
    contractScenario('contract-hvm', 'hvm'),
    contractScenario('contract-pv', 'pv'),
    chainScenario('pvh-1', 1),
    chainScenario('pvh-2', 2),
    ioScenario('io-persistent', 'persistent-grants', 1),
    ioScenario('io-mapped', 'grants-for-each-request', 2),
    killedScenario('killed', KILLED_BEFORE_RESUME),
    killedScenario('killed-late', KILLED_AFTER_RESUME),
    foreignScenario('foreign'),
    diskScenario('qcow2', { disk: 'qcow2' }, 'open for writing'),
    diskScenario('volume', { disk: 'volume' }, 'is open'),
    smokeScenario('pv-smoke', 'pv'),
    pvScenario('pv-1', 1),
    pvScenario('pv-2', 2),
    pvForeign,
    ioScenario('pv-io', 'persistent-grants', 1, 'pv'),
    smokeScenario('hvm-smoke', 'hvm'),
    hvmScenario('hvm-1', {}),
    hvmScenario('hvm-2', { vcpus: 2, disk: 'persistent-grants' }),
    hvmScenario('hvm-ide', { disk: 'persistent-grants', emulatedDisk: true, churnKib: 64 }),
    hvmScenario('hvm-vga', { graphics: 'stdvga' }),
    hvmScenario('hvm-plain', { isPlain: true }),
    hvmScenario('hvm-unaware', { isUnaware: true, disk: 'persistent-grants', churnKib: 64 }),
    diskScenario('hvm-volume', { type: 'hvm', disk: 'volume', emulatedDisk: true }, 'is open'),
    diskScenario('hvm-qcow2', { type: 'hvm', disk: 'qcow2' }, 'open for writing'),
    foreignScenario('hvm-foreign', {
      type: 'hvm',
      graphics: 'cirrus',
      disk: 'persistent-grants',
      emulatedDisk: true,
      churnKib: 64,
    }),
    remusScenario('remus', { vcpus: 2 }),
    ...([128, 512] as const).flatMap((memoryMib) => [
      comparison(memoryMib, 'random'),
      comparison(memoryMib, 'files'),
    ]),
  ],
  process.argv.slice(2),
);
