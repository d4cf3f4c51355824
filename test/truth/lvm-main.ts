/**
 * Disks on logical volumes, one thin and one thick, on this machine: needs device-mapper, so it is run in the nested lab.
 *
 *     node dist/test/truth/lvm-main.js
 *
 * Ends with status 1 when a step does not hold. One JSON line for each step.
 */

import { execFileSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';

import { listVolumes } from '../../adapters/disks/lvm/logical-volumes.js';
import { runTool } from '../../adapters/disks/run-tool.js';
import { resumeSuspended } from '../../adapters/disks/lvm/suspended-devices.js';
import { FAULT_POINTS } from '../../src/checkpoint/fault-points.js';
import { LabMachine } from '../lab/machine.js';
import { cairn, CairnProcess, runCairn, type CliMessage } from '../lab/support/cairn-cli.js';
import { scratchDir } from '../lab/support/lab-files.js';
import { chooseAccelerator } from './host.js';
import { printLine } from './truth-line.js';

/** Sectors past the last one written that are looked at: what a disk that was not put back would have there. */
const LOOK_AHEAD = 400;
const THIN = '/dev/lab/thin';
const THICK = '/dev/lab/thick';
const DISKS = [
  { device: '/dev/vda', volume: THIN, count: '/tmp/pair-a' },
  { device: '/dev/vdb', volume: THICK, count: '/tmp/pair-b' },
];

const lvm = (...args: string[]): string =>
  execFileSync('lvm', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });

function must(what: string, isSo: boolean, found?: unknown): void {
  if (!isSo) throw new Error(`${what}: ${JSON.stringify(found)}`);
}

function checked(scenario: string): void {
  printLine({ event: 'checked', scenario, faults: [] });
}

function makeVolumes(dir: string): void {
  const image = join(dir, 'volumes.img');
  writeFileSync(image, '');
  truncateSync(image, 512 << 20);
  execFileSync('losetup', ['/dev/loop0', image]);
  lvm('pvcreate', '-q', '/dev/loop0');
  lvm('vgcreate', '-q', 'lab', '/dev/loop0');
  lvm('lvcreate', '-q', '-y', '-L', '128M', '-n', 'thick', 'lab');
  lvm('lvcreate', '-q', '-y', '-L', '160M', '--thinpool', 'pool', 'lab');
  lvm('lvcreate', '-q', '-y', '-V', '128M', '--thin', '-n', 'thin', 'lab/pool');
}

async function snapshotNames(): Promise<readonly string[]> {
  const list = await listVolumes(runTool);
  if ('whyNot' in list) throw new Error(list.whyNot);
  return list.volumes.filter(({ name }) => name.includes('-cairn-')).map(({ name }) => name);
}

/** Writes n to sector n of the disk, then to a file in memory, for ever. */
function writer({ device, count }: (typeof DISKS)[number]): string {
  return (
    `(n=0; while :; do n=$((n + 1)); printf '%-512d' $n | dd of=${device} bs=512 seek=$n conv=notrunc oflag=direct 2>/dev/null; ` +
    `echo $n >${count}.new; mv ${count}.new ${count}; usleep 20000; done) </dev/null >/dev/null 2>&1 & echo $! >>/tmp/loads`
  );
}

/** Disk and memory are of the same instant. */
async function mustAgree(machine: LabMachine, atMost: readonly number[]): Promise<void> {
  await machine.guest('lab stop');
  for (const [i, { device, count }] of DISKS.entries()) {
    const pair = Number(await machine.guest(`cat ${count}`));
    must(`${device} is not far past the checkpoint`, pair < atMost[i]! + LOOK_AHEAD / 4, { pair, atMost });
    const written = await machine.guest(
      `dd if=${device} bs=512 skip=1 count=${pair} iflag=direct 2>/dev/null | tr -s ' ' '\\n' | grep -c .`,
    );
    must(`${device} has what memory knows of`, Number(written) === pair, { written, pair });
    const beyond = await machine.guest(
      `dd if=${device} bs=512 skip=$((${pair} + 2)) count=${LOOK_AHEAD} iflag=direct 2>/dev/null | tr -d '\\0' | wc -c`,
    );
    must(`${device} has nothing else`, Number(beyond) === 0, { beyond, pair });
  }
}

async function main(): Promise<void> {
  const kernel = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim();
  const accelerator = await chooseAccelerator();
  printLine({ event: 'started', kernel, accelerator, trackers: [] });
  const dir = scratchDir('lvm');
  makeVolumes(dir);
  let machine = await LabMachine.start({
    name: 'lvm',
    dir,
    accelerator,
    memoryMib: 192,
    devices: [],
    extraArgs: DISKS.flatMap(({ volume }, i) => [
      ...['-drive', `file=${volume},if=none,id=disk${i},format=raw,cache=none`],
      ...['-device', `virtio-blk-pci,drive=disk${i}`],
    ]),
  });
  const options = { dir };
  const repo = join(dir, 'repo');
  const take = (...more: string[]): string[] => ['checkpoint', machine.address, '--repo', repo, ...more];
  const restored = async (id: string): Promise<LabMachine> => {
    const { pid } = await cairn(['restore', id, '--repo', repo], options);
    return LabMachine.adopt('lvm', dir, Number(pid));
  };
  const refusal = async (id: string): Promise<CliMessage> => {
    const { exitCode, messages } = await runCairn(['restore', id, '--repo', repo], options);
    must('the restore is refused', exitCode !== 0, messages);
    return messages.at(-1)!;
  };
  await cairn(['init', '--repo', repo], options);
  const { disks } = await cairn(['doctor', machine.address], options);
  const modes = (disks as { snapshot_modes: string[] }[]).map((disk) => disk.snapshot_modes.join());
  must('doctor says what can be done', isDeepStrictEqual(modes, ['lvm', 'lvm']), disks);
  for (const disk of DISKS) await machine.guest(writer(disk));

  const ids: string[] = [];
  const pairs: number[][] = [];
  for (let i = 0; i < 2; i++) {
    await machine.waitForProgress();
    const summary = await cairn(take(), options);
    must('both disks are snapshotted', summary.disk_snapshots === 2, summary);
    ids.push(String(summary.checkpoint_id));
    pairs.push(
      await Promise.all(DISKS.map(async ({ count }) => Number(await machine.guest(`cat ${count}`)))),
    );
    const { disks_ms: disksMs } = summary.phases as { disks_ms: number };
    checked(
      `a checkpoint with two snapshots: pause ${Math.round(Number(summary.pause_ms))} ms, of it lvm ${Math.round(disksMs)} ms`,
    );
  }

  // The thin one comes first and is there when the thick one is refused.
  const before = await snapshotNames();
  lvm('lvcreate', '-q', '-y', '-l', '100%FREE', '-n', 'filler', 'lab');
  const tooLarge = await runCairn(take(), options);
  lvm('lvremove', '-q', '-y', 'lab/filler');
  must('there is no such room', tooLarge.messages.at(-1)?.code === 'DISK_SNAPSHOT_FAILED', tooLarge.messages);
  must('none is left behind', isDeepStrictEqual(await snapshotNames(), before), await snapshotNames());
  await machine.waitForProgress();
  checked('all or nothing');

  const { signal } = await new CairnProcess(take(), {
    ...options,
    env: { CAIRN_FAULT_POINT: String(FAULT_POINTS.beforeResume) },
  }).ended;
  must('it was killed in the pause', signal === 'SIGKILL', signal);
  const orphaned = (await snapshotNames()).filter((name) => !before.includes(name));
  must('its snapshots are there', orphaned.length === DISKS.length, orphaned);
  await machine.waitForProgress();
  const after = await cairn(take(), options);
  must('the next checkpoint is whole', after.disk_snapshots === DISKS.length, after);
  const now = await snapshotNames();
  must('and has dropped them', !orphaned.some((name) => now.includes(name)), { orphaned, now });
  must('and nothing else', now.length === before.length + DISKS.length, { before, now });
  checked('snapshots of a Cairn that was killed');

  must('the VM is in the way', (await refusal(ids[0]!)).code === 'RESTORE_TARGET_BUSY');
  await machine.waitForProgress();
  await machine.kill();
  const held = openSync(THICK, 'r');
  must('an open volume is in the way', (await refusal(ids[0]!)).code === 'RESTORE_TARGET_BUSY');
  closeSync(held);
  checked('a volume in use is refused');

  for (const position of [1, 0, 1]) {
    machine = await restored(ids[position]!);
    await mustAgree(machine, pairs[position]!);
    await machine.kill();
    checked(`restored checkpoint ${position}`);
  }

  machine = await restored(ids[1]!);
  const small = String((await cairn(take('--lvm-size', '4M'), options)).checkpoint_id);
  await machine.guest(
    'dd if=/dev/urandom of=/dev/vdb bs=1M seek=64 count=12 conv=notrunc oflag=direct 2>/dev/null',
  );
  await machine.waitForProgress();
  const next = String((await cairn(take('--lvm-size', '4M'), options)).checkpoint_id);
  await machine.kill();
  const overflowed = await refusal(small);
  must('an overflowed snapshot is refused', String(overflowed.message).includes('overflowed'), overflowed);
  const noRoom = await refusal(ids[0]!);
  must(
    'another snapshot has no room for it',
    String(noRoom.message).includes(`thick-cairn-${next} has no room`),
    noRoom,
  );
  machine = await restored(next);
  await machine.waitForProgress();
  await machine.kill();
  lvm('lvremove', '-q', '-y', `lab/thick-cairn-${next}`);
  machine = await restored(ids[0]!);
  await mustAgree(machine, pairs[0]!);
  await machine.kill();
  must('a snapshot that is gone is refused', (await refusal(next)).code === 'RESTORE_FAILED');
  checked('overflow, room and loss of snapshots');

  execFileSync('dmsetup', ['suspend', 'lab-thick']);
  const list = await listVolumes(runTool);
  const uuid = 'whyNot' in list ? '' : list.volumes.find(({ name }) => name === 'thick')!.uuid;
  const left = await resumeSuspended([uuid], runTool);
  const state = execFileSync('dmsetup', ['info', '-c', '--noheadings', '-o', 'suspended', 'lab-thick'], {
    encoding: 'utf8',
  });
  must('a suspended volume is resumed', left.length === 0 && state.trim() === 'Active', { left, state });
  checked('a suspended volume is resumed');
  printLine({ event: 'done' });
}

await main().then(
  () => process.exit(0),
  (error: unknown) => {
    printLine({
      event: 'failed',
      message: error instanceof Error ? (error.stack ?? error.message) : String(error),
    });
    process.exit(1);
  },
);
