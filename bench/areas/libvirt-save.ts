/**
 * Checkpoints of a libvirt domain against `virsh save` of the same domain, both as whole commands that end when everything is
 * durable. Increments and saves take turns. `virsh save` ends the domain: what stands for its pause is the save itself, without the
 * time until `virsh restore` has brought it back.
 */

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import { LabDomain, whyNoLibvirt } from '../../test/lab/libvirt-domain.js';
import type { LabMachine } from '../../test/lab/machine.js';
import { cairn, isSummary, runCairn } from '../../test/lab/support/cairn-cli.js';
import { againstPeer, median, type BenchArea, type BenchContext, type BenchRow } from '../rows.js';

const MEMORY_MIB = 1024;
const FILL_MIB = 640;
/** The saved image goes through libvirt's helper, which syncs it. */
const PEER = 'virsh save (ends the domain)';

interface Measured {
  readonly pauseMs: number[];
  /** Of one-shot commands, which know nothing of the checkpoint before. */
  readonly totalMs: number[];
  /** Of a watcher, which keeps what it needs in memory. */
  readonly watchMs: number[];
  readonly commandMs: number[];
  readonly saveMs: number[];
}

/** Rows of both areas, pause and checkpoint-time: one domain, one run. */
export async function* libvirtSaveRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const reason = whyNoLibvirt();
  if (reason !== '') {
    process.stderr.write(`skipped: a libvirt domain: ${reason}\n`);
    return;
  }
  context.progress('libvirt: booting a domain');
  const domain = await LabDomain.define(`cairn-bench-${process.pid}`, {
    domainXml: `<memory unit='MiB'>${MEMORY_MIB}</memory><vcpu>1</vcpu>`,
  });
  let measured: Measured;
  try {
    measured = await measure(domain, context);
  } finally {
    await domain.remove();
  }
  const row = (area: BenchArea) =>
    ({
      area,
      workload: 'libvirt domain, 1 GiB, scattered small writes and runs of 64 KiB for 1 s',
      unit: 'ms',
      peer: PEER,
      peerValue: median(measured.saveMs),
    }) as const;
  yield againstPeer(
    { ...row('pause'), name: 'pause, p50', value: median(measured.pauseMs) },
    'shorter',
    (ratio) => ratio < 1,
  );
  const goal = 'at least 95 % less';
  const isMet = (ratio: number): boolean => ratio <= 0.05;
  yield againstPeer(
    {
      ...row('checkpoint-time'),
      name: 'increment of cairn watch, total, durable (total_ms), the domain runs on',
      value: median(measured.watchMs),
    },
    goal,
    isMet,
  );
  yield againstPeer(
    {
      ...row('checkpoint-time'),
      name: 'increment of cairn checkpoint, total, durable (total_ms), the domain runs on',
      value: median(measured.totalMs),
    },
    goal,
    isMet,
  );
  yield againstPeer({
    ...row('checkpoint-time'),
    name: 'increment of cairn checkpoint, the whole command, start of Node.js and attaching included',
    value: median(measured.commandMs),
  });
}

async function measure(domain: LabDomain, context: BenchContext): Promise<Measured> {
  const measured: Measured = { pauseMs: [], totalMs: [], watchMs: [], commandMs: [], saveMs: [] };
  const rounds = context.quick ? 1 : 3;
  const increments = context.quick ? 5 : 8;
  const repo = join(domain.dir, 'repo');
  const checkpoint = ['checkpoint', domain.address, '--repo', repo];
  let machine = await domain.start();
  await machine.guest(`lab fill ${FILL_MIB}`, 900_000);
  await machine.guest('lab memory 32');
  await cairn(['init', '--repo', repo], domain.cli);
  for (let round = 0; round < rounds; round++) {
    context.progress(`libvirt: base or comparison, round ${round + 1} of ${rounds}`);
    // Of a QEMU that was just started: nothing is known yet of what its guest writes.
    await cairn(checkpoint, domain.cli);
    for (let i = 0; i < increments; i++) {
      context.progress(`libvirt: round ${round + 1} of ${rounds}, checkpoint ${i + 1} of ${increments}`);
      await sleep(1000);
      const started = performance.now();
      const summary = await cairn(checkpoint, domain.cli);
      measured.commandMs.push(performance.now() - started);
      measured.totalMs.push(Number(summary.total_ms));
      measured.pauseMs.push(Number(summary.pause_ms));
    }
    context.progress(`libvirt: round ${round + 1} of ${rounds}, cairn watch`);
    measured.watchMs.push(...(await watched(domain, repo, increments)));
    await mustRunOn(domain, machine);
    machine.qmp.close();
    context.progress(`libvirt: round ${round + 1} of ${rounds}, save`);
    const image = join(domain.dir, 'image.save');
    const started = performance.now();
    await domain.virsh('save', domain.name, image);
    measured.saveMs.push(performance.now() - started);
    await domain.virsh('restore', image);
    rmSync(image);
    machine = await domain.adopt();
  }
  machine.qmp.close();
  return measured;
}

/** Totals of a watcher's checkpoints, without the first, which reads the chain. */
async function watched(domain: LabDomain, repo: string, count: number): Promise<readonly number[]> {
  const args = ['watch', domain.address, '--repo', repo, '--every', '1', '--count', `${count + 1}`];
  const { exitCode, messages, stderr } = await runCairn(args, domain.cli);
  if (exitCode !== 0) throw new Error(`cairn watch: ${stderr}`);
  return messages
    .filter(isSummary)
    .slice(1)
    .map(({ total_ms }) => Number(total_ms));
}

async function mustRunOn(domain: LabDomain, machine: LabMachine): Promise<void> {
  await machine.waitForProgress();
  const state = await domain.state();
  if (state !== 'running') throw new Error(`the domain is ${state} after its checkpoints`);
}
