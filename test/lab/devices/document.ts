/** docs/devices.md, made of the rows under bench/results. */

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { SOURCE_ROOT, type QemuVersion } from '../support/lab-files.js';
import type { DeviceRow, Outcome } from './trial.js';

export const VERSIONS: readonly QemuVersion[] = ['7.2', '10.0'];
export const DOCUMENT_PATH = join(SOURCE_ROOT, 'docs/devices.md');

const WIDTH = 110;

export function rowsPath(version: QemuVersion): string {
  return join(SOURCE_ROOT, `bench/results/devices-${version}.jsonl`);
}

/** The last row of each device. */
export function readRows(version: QemuVersion): ReadonlyMap<string, DeviceRow> {
  const path = rowsPath(version);
  const lines = existsSync(path) ? readFileSync(path, 'utf8').split('\n').filter(Boolean) : [];
  return new Map(lines.map((line) => JSON.parse(line) as DeviceRow).map((row) => [row.device, row]));
}

/** Puts the rows in the order of names, each device once. */
export function tidyRows(version: QemuVersion): void {
  const rows = [...readRows(version).values()].sort((a, b) => (a.device < b.device ? -1 : 1));
  writeFileSync(rowsPath(version), rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
}

export function documentOf(tables: ReadonlyMap<QemuVersion, ReadonlyMap<string, DeviceRow>>): string {
  return `${[HEAD, ...[...tables].flatMap(([version, rows]) => section(version, [...rows.values()]))].join('\n')}\n`;
}

const HEAD = `# Devices of QEMU

Which of the devices that QEMU offers on x86 a checkpoint can be taken with. A VM was started with each of them
and Cairn was asked. Where it refuses nothing, a small guest of the lab was started with up to ten such devices at
a time, under emulation; a checkpoint was taken and restored once. Most of them have no driver in that guest: what
is proven is that QEMU hands the state of the device out, takes it in again, and that the guest goes on.

This page is written by \`node dist/test/lab/device-table.js --qemu 7.2\` (and \`10.0\`) out of
\`bench/results/devices-7.2.jsonl\` and \`bench/results/devices-10.0.jsonl\`; \`--only NAME\` tries one device again.
`;

const MEANING: Readonly<Record<Outcome, string>> = {
  works: 'the checkpoint was taken, and the restored guest went on',
  refused:
    'no checkpoint is taken, and the guest runs on: exit code 22, code VM_UNSUPPORTED, and `cairn doctor` says it before',
  fails: 'the checkpoint or its restore fails by a code; nothing else happens to the guest',
  'not tried': 'the device starts and Cairn refuses nothing; checkpoint and restore were not tried yet',
  'not here': 'could not be tried on this host',
};

function section(version: QemuVersion, rows: readonly DeviceRow[]): readonly string[] {
  if (rows.length === 0) return [];
  const versions = [...new Set(rows.map(({ qemu }) => qemu))].join(', ');
  const days = rows.map(({ date }) => date).sort();
  const days2 = [...new Set([days[0]!, days.at(-1)!])].join(' to ');
  return [
    `## QEMU ${version}`,
    '',
    ...wrapped(`QEMU ${versions}, tried ${days2}.`),
    '',
    ...(['works', 'refused', 'fails', 'not tried', 'not here'] as const).flatMap((outcome) =>
      part(outcome, rows),
    ),
  ];
}

function part(outcome: Outcome, all: readonly DeviceRow[]): readonly string[] {
  const rows = all.filter((row) => row.outcome === outcome).sort((a, b) => (a.device < b.device ? -1 : 1));
  if (rows.length === 0) return [];
  const head = [
    `### ${outcome[0]!.toUpperCase()}${outcome.slice(1)}: ${rows.length}`,
    '',
    ...wrapped(`That is: ${MEANING[outcome]}.`),
    '',
  ];
  if (outcome === 'works' || outcome === 'not tried')
    return [...head, ...wrapped(rows.map(({ device }) => `\`${device}\``).join(', ')), ''];
  const byReason = new Map<string, DeviceRow[]>();
  for (const row of rows) {
    const reason = JSON.stringify([row.code, row.why]);
    byReason.set(reason, [...(byReason.get(reason) ?? []), row]);
  }
  return [
    ...head,
    '| devices | code | reason |',
    '| --- | --- | --- |',
    ...[...byReason.values()].map((same) => {
      const { code, why } = same[0]!;
      const names =
        same.length > 12
          ? `${same.length} such devices`
          : same.map(({ device }) => `\`${device}\``).join(', ');
      return `| ${names} | ${code === '' ? '' : `\`${code}\``} | ${why.replaceAll('|', '\\|')} |`;
    }),
    '',
  ];
}

function wrapped(text: string): readonly string[] {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + word.length < WIDTH) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}
