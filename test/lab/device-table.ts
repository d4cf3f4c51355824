/**
 * Which devices of QEMU a checkpoint can be taken with:
 *
 *     node dist/test/lab/device-table.js --qemu 7.2|10.0 [--only NAME,...] [--for SECONDS] [--jobs 2] [--group 8] [--look]
 *
 * Looks at every device that QEMU offers, in a VM that does not run; tries those that are left in groups, with a
 * guest, unless `--look` says to look only; and writes what came out to `bench/results` at once, and to
 * docs/devices.md. Stopped and started again it goes on with those that are not
 * there yet, or that another package of QEMU was tried with. Ends with status 3 when devices are left at the end of
 * its time, with 1 when a QEMU has died.
 */

import { appendFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { documentOf, DOCUMENT_PATH, readRows, rowsPath, tidyRows, VERSIONS } from './devices/document.js';
import { listDevices, packageVersion, type OfferedDevice } from './devices/listing.js';
import { labCache } from './support/lab-files.js';
import { look, tryTogether, type Candidate, type DeviceRow, type Result } from './devices/trial.js';

const { values } = parseArgs({
  options: {
    qemu: { type: 'string', default: '7.2' },
    only: { type: 'string' },
    for: { type: 'string', default: '86400' },
    jobs: { type: 'string', default: '2' },
    group: { type: 'string', default: '8' },
    look: { type: 'boolean', default: false },
  },
});
const version = VERSIONS.find((known) => known === values.qemu);
if (version === undefined) throw new Error(`--qemu ${values.qemu}: known are ${VERSIONS.join(', ')}`);
// The second QEMU would load the modules of the installed one. Restored machines inherit it as well.
if (version === '10.0')
  process.env.QEMU_MODULE_DIR = join(labCache(), 'qemu-10/usr/lib/x86_64-linux-gnu/qemu');
const until = Date.now() + Number(values.for) * 1000;
const qemu = packageVersion(version);
const done = readRows(version);
const only = values.only?.split(',');
const wanted = listDevices(version).filter(({ name }) => {
  const row = done.get(name);
  return only?.includes(name) ?? (row?.qemu !== qemu || row.outcome === 'not tried');
});
const groups = new Map<string, Candidate[]>();
const waiting = wanted.filter((device) => {
  const row = done.get(device.name);
  if (row?.qemu !== qemu || row.outcome !== 'not tried') return true;
  addCandidate({ device, machine: row.machine });
  return false;
});
let left = wanted.length;
// So that no machine stays when the run is ended from outside.
process.once('SIGTERM', () => process.exit(3));

await inParallel(async () => {
  const device = waiting.shift();
  if (device === undefined) return !values.look && (await tryOldest(1));
  const found = await look(device, version);
  if ('outcome' in found) write(device, found);
  else if (values.look) write(device, { outcome: 'not tried', code: '', why: '', machine: found.machine });
  else {
    addCandidate(found);
    await tryOldest(Number(values.group));
  }
  return true;
});
tidyRows(version);
writeFileSync(DOCUMENT_PATH, documentOf(new Map(VERSIONS.map((known) => [known, readRows(known)]))));
const died = [...readRows(version).values()].filter(({ code }) => code === 'VM_GONE');
for (const { device, why } of died) process.stderr.write(`QEMU died: ${device}: ${why}\n`);
process.stdout.write(`${left} left\n`);
process.exit(died.length > 0 ? 1 : left > 0 ? 3 : 0);

function addCandidate(candidate: Candidate): void {
  groups.set(candidate.machine, [...(groups.get(candidate.machine) ?? []), candidate]);
}

/** A group of at least that many, of one machine type. @returns false when there is none */
async function tryOldest(atLeast: number): Promise<boolean> {
  const [machine, candidates] = [...groups].find(([, waits]) => waits.length >= atLeast) ?? [];
  if (machine === undefined || candidates === undefined) return false;
  groups.set(machine, candidates.slice(Number(values.group)));
  for (const [{ device }, result] of await tryTogether(candidates.slice(0, Number(values.group)), version!))
    write(device, result);
  return true;
}

function write({ name, category }: OfferedDevice, result: Result): void {
  const date = new Date().toISOString().slice(0, 10);
  const row: DeviceRow = { device: name, category, ...result, qemu, date };
  appendFileSync(rowsPath(version!), `${JSON.stringify(row)}\n`);
  process.stdout.write(`${row.device}: ${row.outcome} ${row.code} ${row.why}\n`);
  if (row.outcome !== 'not tried') left--;
}

/** @param step false when nothing is left */
async function inParallel(step: () => Promise<boolean>): Promise<void> {
  const work = async (): Promise<void> => {
    while (Date.now() < until && (await step()));
  };
  await Promise.all(Array.from({ length: Number(values.jobs) }, work));
}
