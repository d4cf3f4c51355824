/**
 * Runs in dom0: the comparison of the thesis, in one run on one guest: xl's full save, increments of whole pages, a scan bit by bit, and
 * Cairn. Times are those of an emulated machine: their ratios say something, the figures themselves do not.
 * `bench/xen.ts` makes a table of it.
 */

import { spawn } from 'node:child_process';
import { rmSync, statSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import { XenDomain } from '../../../../adapters/xen/domain/domain.js';
import { bindXen } from '../../../../adapters/xen/ffi/bind.js';
import { SHADOW_OP } from '../../../../adapters/xen/ffi/library.js';
import { xenVersion } from '../../../../adapters/xen/domain/host.js';
import { DirtyBitmap } from '../../../../src/bitmap/dirty-bitmap.js';
import { openSession } from '../../../../src/checkpoint/open-session.js';
import { hypervisors } from '../../../../src/index.js';
import { Repository } from '../../../../src/repository/repository.js';
import { openBackend } from '../../../../src/storage/open.js';
import type { Context, Figures } from './harness.js';
import { XenGuest } from './xen-guest.js';

const CHECKPOINTS = 9;
const FULL_SAVES = 2;

/** The worst case, of which nothing can be left out, and what a server does that keeps state. */
export const LOADS = {
  random: { churnKib: 512, text: '512 KiB of random data a second' },
  files: { files: 256, text: '256 small files rewritten a second' },
} as const;

export interface Compared {
  readonly name: string;
  readonly memoryMib: number;
  readonly load: keyof typeof LOADS;
}

const SCANS = 50;
const POLL_MS = 2;

export async function compare({ dir, say }: Context, { name, memoryMib, load }: Compared): Promise<Figures> {
  const { text, ...work } = LOADS[load];
  const guest = await XenGuest.start({ name, memoryMib, ...work });
  const calls = bindXen(xenVersion());
  try {
    const domain = new XenDomain(calls, guest.domid);
    const fullSaves: Figures[] = [];
    for (let i = 0; i < FULL_SAVES; i++) {
      await guest.countOn(1);
      fullSaves.push(await fullSave(guest, domain));
      say(`xl save -c: ${JSON.stringify(fullSaves.at(-1))}`);
    }
    const repository = await Repository.init(openBackend(`${dir}/repo`));
    const session = await openSession(hypervisors(), guest.address, {
      repository,
      workers: 1,
      memoryOnly: true,
      runtimeDir: `${dir}/runtime`,
    });
    const checkpoints: Figures[] = [];
    let scan: Figures = {};
    try {
      for (let i = 0; i <= CHECKPOINTS; i++) {
        await guest.countOn(2);
        if (i === CHECKPOINTS) scan = scanBothWays(domain);
        const summary = await session.checkpoint();
        checkpoints.push({
          kind: summary.kind,
          totalMs: summary.totalMs,
          stopMs: summary.pauseMs,
          phases: summary.phases,
          storedBytes: summary.storedBytes,
          pageGranularBytes: summary.rawBytes,
          rounds: summary.rounds,
        });
        say(`cairn: ${JSON.stringify(checkpoints.at(-1))}`);
      }
    } finally {
      await session.close();
    }
    return { memoryMib, load: text, fullSaves, checkpoints, scan };
  } finally {
    calls.close();
    guest.destroy();
  }
}

/** `xl save -c`: the time it takes, and how long the guest is suspended meanwhile. */
async function fullSave(guest: XenGuest, domain: XenDomain): Promise<Figures> {
  const path = `/tmp/${guest.name}.save`;
  const started = performance.now();
  const child = spawn('xl', ['save', '-c', guest.name, path], { stdio: 'ignore' });
  let code: number | null | undefined;
  child.once('close', (exitCode) => (code = exitCode));
  let stoppedAt: number | undefined;
  let resumedAt = 0;
  while (code === undefined) {
    const now = performance.now();
    if (domain.info().isSuspended) {
      stoppedAt ??= now;
      resumedAt = now;
    }
    await sleep(POLL_MS);
  }
  const totalMs = performance.now() - started;
  if (code !== 0) throw new Error(`xl save ended with ${code ?? 'a signal'}`);
  const sizeBytes = statSync(path).size;
  rmSync(path);
  return { totalMs, stopMs: resumedAt - (stoppedAt ?? resumedAt), sizeBytes };
}

/** The hypervisor's bitmap as it is, turned into runs by Cairn's scan and bit by bit. */
function scanBothWays(domain: XenDomain): Figures {
  const frameCount = domain.frameCount();
  const bits = new Uint8Array(Math.ceil(frameCount / 64) * 8);
  domain.calls.logDirty(domain.domid, SHADOW_OP.peek, frameCount, 0, bits, new Uint32Array(2));
  const bitmap = DirtyBitmap.fromBytes(frameCount, bits);
  const fastMs = timed(() => bitmap.toRuns().length);
  const bitByBitMs = timed(() => {
    let runs = 0;
    let inside = false;
    for (let frame = 0; frame < frameCount; frame++) {
      const isSet = (bits[frame >>> 3]! >>> (frame & 7)) & 1;
      if (isSet === 1 && !inside) runs++;
      inside = isSet === 1;
    }
    return runs;
  });
  return { frameCount, dirtyPages: bitmap.count(), fastMs, bitByBitMs };
}

function timed(work: () => number): number {
  const times: number[] = [];
  for (let i = 0; i < SCANS; i++) {
    const from = performance.now();
    work();
    times.push(performance.now() - from);
  }
  return times.sort((a, b) => a - b)[SCANS >> 1]!;
}
