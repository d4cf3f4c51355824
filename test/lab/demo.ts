/**
 * The demo: what Cairn does, on a real VM, in about a minute. Every line it prints comes from what happened in this run; it fails
 * when a step does not hold.
 */

import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { formatBytes, formatMs, formatTable } from '../../src/text.js';
import { LabMachine } from './machine.js';
import { CairnProcess, cairn, isSummary, type CliMessage } from './support/cairn-cli.js';
import { migrateToFile } from './support/ground-truth.js';
import { scratchDir } from './support/lab-files.js';

const MEMORY_MIB = 1024;
const FILL_MIB = 256;
const INCREMENTS = 8;

const started = performance.now();
const dir = scratchDir('demo');
const repo = join(dir, 'repo');
const options = { dir };

say(`booting a Linux guest with ${MEMORY_MIB} MiB under QEMU (emulated, so no virtualisation is needed)`);
const machine = await LabMachine.start({
  name: 'demo',
  dir,
  memoryMib: MEMORY_MIB,
  devices: ['disk', 'net', 'balloon'],
});
await machine.guest(`lab fill ${FILL_MIB}`, 240_000);
const checksum = await machine.guest('lab sum', 120_000);
await machine.guest('lab memory 32');
say(`it counts: tick ${machine.lastTick()}, and works on ${FILL_MIB} MiB of data`);

const rows: string[][] = [];
say('taking a live base checkpoint and a row of increments while it works');
await cairn(['init', '--repo', repo], options);
rows.push(row('base', await cairn(['checkpoint', machine.address, '--repo', repo], options)));
const summaries: CliMessage[] = [];
const watch = new CairnProcess(
  ['watch', machine.address, '--repo', repo, '--every', '2', '--count', `${INCREMENTS}`],
  options,
);
for (let i = 0; i < INCREMENTS; i++) {
  const summary = await watch.message(isSummary, i);
  summaries.push(summary);
  rows.push(row(`increment ${i + 1}`, summary));
}
expectThat((await watch.ended).exitCode === 0, 'the watcher ended cleanly');
const lastTickAtCheckpoint = machine.lastTick();

say("for comparison, QEMU's own full save of the same VM");
await machine.qmp.command('stop');
const fullSaveFrom = performance.now();
const fullSavePath = join(dir, 'full.mig');
await migrateToFile(machine, fullSavePath);
const fullSaveMs = performance.now() - fullSaveFrom;
const fullSaveBytes = statSync(fullSavePath).size;
await machine.qmp.command('cont');
rows.push(['QEMU full save', formatMs(fullSaveMs), formatMs(fullSaveMs), '', formatBytes(fullSaveBytes)]);

process.stdout.write(`\n${formatTable(['checkpoint', 'pause', 'total', 'dirty pages', 'stored'], rows)}\n\n`);

const last = String(summaries.at(-1)!.checkpoint_id);
const earlier = String(summaries[1]!.checkpoint_id);
say('checking everything that was stored');
const verified = await cairn(['verify', '--repo', repo], options);
expectThat(Array.isArray(verified.problems) && verified.problems.length === 0, 'the repository verifies');

say('killing the VM');
await machine.kill();
await restoreAndShow('the last checkpoint', last);
await restoreAndShow('an earlier checkpoint', earlier);
say(`done in ${formatMs(performance.now() - started)}; everything is in ${dir}`);
process.exit(0);

async function restoreAndShow(what: string, checkpointId: string): Promise<void> {
  const diaryBytes = machine.diary().length;
  const from = performance.now();
  const restored = await cairn(['restore', checkpointId, '--repo', repo], options);
  const again = await LabMachine.adopt('demo', dir, Number(restored.pid));
  const first = await again.waitForTick(1, 60_000, diaryBytes);
  const untilTickMs = performance.now() - from;
  await again.waitForTick(first.tick + 3, 60_000, diaryBytes);
  expectThat(
    first.tick <= lastTickAtCheckpoint + 1 && first.tick > 1,
    'the counter goes on from the checkpoint',
  );
  expectThat(
    again.ticks(diaryBytes).every(({ tick, lines }) => tick === lines),
    'the open file goes on with it',
  );
  expectThat((await again.guest('lab sum', 120_000)) === checksum, `${FILL_MIB} MiB of data are unharmed`);
  say(
    `restored ${what} ${checkpointId}: the guest goes on at tick ${first.tick}, ${formatMs(untilTickMs)} after the command`,
  );
  await again.kill();
  await sleep(100);
}

function row(name: string, summary: CliMessage): string[] {
  return [
    name,
    formatMs(Number(summary.pause_ms)),
    formatMs(Number(summary.total_ms)),
    String(summary.dirty_pages),
    formatBytes(Number(summary.stored_bytes)),
  ];
}

function expectThat(holds: boolean, what: string): void {
  if (!holds) {
    process.stderr.write(`demo failed: not true that ${what}\n`);
    process.exit(1);
  }
  say(`  ${what}`);
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}
