/** `cairn checkpoint` of a libvirt domain against `virsh save` of the same domain, both as whole commands. */

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import { LabDomain, whyNoLibvirt } from '../../test/lab/libvirt-domain.js';
import { cairn } from '../../test/lab/support/cairn-cli.js';
import { againstPeer, median, type BenchContext, type BenchRow } from '../rows.js';

const MEMORY_MIB = 1024;
const FILL_MIB = 640;
const GOAL_RATIO = 0.05;

export async function* libvirtSaveRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const reason = whyNoLibvirt();
  if (reason !== '') {
    process.stderr.write(`skipped: a libvirt domain: ${reason}\n`);
    return;
  }
  context.progress('checkpoint-time: booting a libvirt domain');
  const domain = await LabDomain.define('cairn-bench', {
    domainXml: `<memory unit='MiB'>${MEMORY_MIB}</memory><vcpu>1</vcpu>`,
  });
  try {
    const machine = await domain.start();
    await machine.guest(`lab fill ${FILL_MIB}`, 900_000);
    await machine.guest('lab memory 32');
    const repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], domain.cli);
    const checkpoint = ['checkpoint', domain.address, '--repo', repo];
    await cairn(checkpoint, domain.cli);
    const totals: number[] = [];
    const commands: number[] = [];
    const count = context.quick ? 8 : 20;
    for (let i = 0; i < count; i++) {
      context.progress(`checkpoint-time: libvirt domain, checkpoint ${i + 1} of ${count}`);
      await sleep(1000);
      const started = performance.now();
      const summary = await cairn(checkpoint, domain.cli);
      commands.push(performance.now() - started);
      totals.push(Number(summary.total_ms));
    }
    machine.qmp.close();
    const saves: number[] = [];
    for (let i = 0; i < 3; i++) {
      context.progress(`checkpoint-time: libvirt domain, save ${i + 1} of 3`);
      const image = join(domain.dir, 'image.save');
      const started = performance.now();
      await domain.virsh('save', domain.name, image);
      saves.push(performance.now() - started);
      await domain.virsh('restore', image);
      rmSync(image);
    }
    const row = {
      area: 'checkpoint-time',
      workload: 'libvirt domain, 1 GiB, scattered small writes and runs of 64 KiB for 1 s',
      unit: 'ms',
      peer: 'virsh save (ends the domain)',
      peerValue: median(saves),
    } as const;
    const goal = 'at least 95 % less';
    const isMet = (ratio: number): boolean => ratio <= GOAL_RATIO;
    yield againstPeer(
      { ...row, name: 'increment, total, durable (total_ms)', value: median(totals) },
      goal,
      isMet,
    );
    yield againstPeer(
      { ...row, name: 'increment, the whole command, start of Node.js included', value: median(commands) },
      goal,
      isMet,
    );
  } finally {
    await domain.remove();
  }
}
