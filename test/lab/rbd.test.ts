/** Disks on images of a real Ceph cluster (16.2 on Debian 12), which runs beside the guest. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { CairnProcess, cairn, runCairn } from './support/cairn-cli.js';
import { CephCluster, whyNoCeph } from './support/ceph-cluster.js';
import { scratchDir } from './support/lab-files.js';

const IMAGES = ['vms/first', 'vms/tenant/second'];
/** Sectors past the last one written that are looked at: what a disk that was not rolled back would have there. */
const LOOK_AHEAD = 400;

/** Changes both disks at their end, where nothing else writes. */
const SPOIL = [
  ['vda', 64],
  ['vdb', 32],
]
  .map(([disk, mib]) => `echo spoilt | dd of=/dev/${disk!} bs=1M seek=${Number(mib) - 1} conv=notrunc,fsync`)
  .join(' && ');

const reason = whyNoCeph();
if (reason !== '') process.stderr.write(`test/lab/rbd.test.ts is skipped: ${reason}\n`);

(reason === '' ? describe : describe.skip)('disks on Ceph RBD', () => {
  let cluster: CephCluster;
  let machine: LabMachine;
  let options: { dir: string };
  let repo = '';
  const ids: string[] = [];
  const pairsAfter: number[] = [];

  beforeAll(async () => {
    const dir = scratchDir('rbd');
    cluster = await CephCluster.start(join(dir, 'ceph'));
    cluster.createPool('vms');
    cluster.rbd('namespace', 'create', 'vms/tenant');
    cluster.rbd('create', 'vms/first', '--size', '64M');
    cluster.rbd('create', 'vms/tenant/second', '--size', '32M');
    machine = await LabMachine.start({
      name: 'rbd',
      memoryMib: 192,
      dir,
      devices: [],
      extraArgs: [
        // Held back by librbd until somebody flushes, so that a snapshot beside a full cache would be seen.
        ...['-drive', `file=rbd:vms/first:conf=${cluster.conf},if=none,id=first,format=raw,cache=writeback`],
        ...['-device', 'virtio-blk-pci,drive=first'],
        '-blockdev',
        JSON.stringify({
          driver: 'rbd',
          pool: 'vms',
          namespace: 'tenant',
          image: 'second',
          conf: cluster.conf,
          'node-name': 'second-storage',
        }),
        ...['-blockdev', 'driver=raw,file=second-storage,node-name=second'],
        ...['-device', 'virtio-blk-pci,drive=second'],
      ],
    });
    options = { dir };
    repo = join(dir, 'repo');
    await cairn(['init', '--repo', repo], options);
  });
  afterAll(async () => {
    // QEMU before the cluster that it would wait for, its folder last: the cluster lies in it.
    await machine.kill();
    await cluster.destroy();
    await machine.destroy();
  });

  const checkpoint = (...more: readonly string[]) =>
    runCairn(['checkpoint', machine.address, '--repo', repo, ...more], options);

  it('are found by doctor, with the mode of their snapshots', async () => {
    const { disks } = await cairn(['doctor', machine.address], options);
    expect(disks).toEqual([
      expect.objectContaining({ id: 'first', path: 'rbd:vms/first', snapshot_modes: ['rbd'] }),
      expect.objectContaining({ id: 'second', path: 'rbd:vms/tenant/second', snapshot_modes: ['rbd'] }),
    ]);
  });

  it('get snapshots in the pause while the guest writes, each recorded with its image', async () => {
    await machine.guest('lab pair');
    for (let i = 0; i < 3; i++) {
      await machine.waitForProgress();
      // Buffered by the guest and flushed: told to be written, so that it must be in the snapshot.
      await machine.guest(`echo round-${i} | dd of=/dev/vdb bs=512 conv=notrunc,fsync 2>/dev/null`);
      const { exitCode, messages } = await checkpoint();
      expect(exitCode).toBe(0);
      const summary = messages.at(-1)!;
      expect(summary).toMatchObject({ disk_snapshots: 2 });
      ids.push(String(summary.checkpoint_id));
      pairsAfter.push(Number(await machine.guest('cat /tmp/pair')));
    }
    const { disks } = await cairn(['show', ids[1]!, '--repo', repo], options);
    expect(disks).toEqual([
      expect.objectContaining({ mode: 'rbd', path: 'rbd:vms/first', snapshot_name: `cairn-${ids[1]!}` }),
      expect.objectContaining({ mode: 'rbd', path: 'rbd:vms/tenant/second' }),
    ]);
    for (const image of IMAGES) {
      expect(cluster.snapshotsOf(image)).toEqual(ids.map((id) => `cairn-${id}`));
    }
  });

  it('all get one or none, and what somebody else has made stays', async () => {
    const { exitCode, messages } = await checkpoint(
      ...['--disks', 'rbd', '--hook'],
      `[ $CAIRN_PHASE != before-pause ] || rbd -c ${cluster.conf} snap create --no-progress vms/tenant/second@cairn-$CAIRN_CHECKPOINT_ID`,
    );
    expect(exitCode).not.toBe(0);
    expect(messages.at(-1)).toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
      message: expect.stringMatching(/rbd:vms\/tenant\/second: .*create snapshot/),
    });
    expect(cluster.snapshotsOf('vms/first')).toEqual(ids.map((id) => `cairn-${id}`));
    const [theirs, ...others] = cluster
      .snapshotsOf('vms/tenant/second')
      .filter((name) => !ids.includes(name.slice('cairn-'.length)));
    expect(others).toEqual([]);
    cluster.rbd('snap', 'rm', '--no-progress', `vms/tenant/second@${theirs!}`);
    await machine.waitForProgress();
  });

  it('lose the snapshots of a checkpoint that fails after them', async () => {
    const { exitCode } = await checkpoint('--disks', 'rbd', '--hook', '[ $CAIRN_PHASE != paused ]');
    expect(exitCode).not.toBe(0);
    for (const image of IMAGES) {
      expect(cluster.snapshotsOf(image)).toEqual(ids.map((id) => `cairn-${id}`));
    }
    await machine.waitForProgress();
  });

  describe('while the cluster hangs and the guest has requests under way', () => {
    afterAll(async () => {
      cluster.goOn();
      for (const image of IMAGES) await cluster.waitForWatcher(image);
    });

    // In the pause QEMU would wait in `stop`, and the guest stand still.
    it('have the pause refused when it begins to hang right before it, and the guest goes on', async () => {
      const { exitCode, messages } = await checkpoint(
        ...['--disks', 'rbd', '--hook'],
        `[ $CAIRN_PHASE != before-pause ] || ${cluster.hangCommand}`,
      );
      expect(exitCode).toBe(22);
      expect(messages.at(-1)).toMatchObject({
        code: 'DISK_STALLED',
        message: expect.stringContaining('rbd:vms/first: rbd status did not end in time'),
        retryable: true,
      });
      await machine.waitForProgress();
    });

    it('are refused at once when it hung before', async () => {
      const { exitCode, messages } = await checkpoint();
      expect(exitCode).toBe(22);
      expect(messages.at(-1)).toMatchObject({
        code: 'DISK_NOT_COVERED',
        message: expect.stringContaining('rbd:vms/first: rbd info did not end in time'),
      });
      await machine.waitForProgress();
    });

    it('have the pause refused also when no snapshot of them is wanted', async () => {
      const { messages } = await checkpoint('--memory-only');
      expect(messages.at(-1)).toMatchObject({ code: 'DISK_STALLED' });
      await machine.waitForProgress();
    });
  });

  it('are not put back while somebody has them open', async () => {
    // Watches until its stdin ends.
    const somebody = spawn('rbd', ['-c', cluster.conf, 'watch', 'vms/tenant/second']);
    const ended = once(somebody, 'exit');
    while (cluster.watcherCount('vms/tenant/second') < 2) await sleep(200);
    await machine.guest(SPOIL);
    await machine.kill();
    try {
      const { messages } = await runCairn(['restore', ids[0]!, '--repo', repo], options);
      expect(messages.at(-1)).toMatchObject({
        code: 'RESTORE_TARGET_BUSY',
        message: expect.stringContaining('rbd:vms/tenant/second open'),
      });
    } finally {
      somebody.stdin.end('\n');
      await ended;
    }
  });

  it.each([
    ['the last', 2],
    ['the first', 0],
    ['the last once more', 2],
  ])('come back to the instant of %s checkpoint, memory and both disks', async (_, position) => {
    const snapshots = IMAGES.map((image) => `${image}@cairn-${ids[position]!}`);
    const contents = snapshots.map((snapshot) => cluster.contentOf(snapshot));
    // Or the restore would have nothing to do.
    IMAGES.forEach((image, i) => expect(cluster.contentOf(image)).not.toBe(contents[i]));
    const { pid } = await cairn(['restore', ids[position]!, '--repo', repo, '--paused'], options);
    const again = await LabMachine.adopt('rbd', machine.dir, Number(pid));
    try {
      expect(IMAGES.map((image) => cluster.contentOf(image))).toEqual(contents);
      await again.qmp.command('cont');
      await again.guest('lab stop');
      const pair = Number(await again.guest('cat /tmp/pair'));
      // Not far past the checkpoint: between restore and stop the loop did a little more.
      expect(pair).toBeLessThan(pairsAfter[position]! + LOOK_AHEAD / 4);
      const read = 'dd bs=512 iflag=direct 2>/dev/null';
      const written = await again.guest(
        `${read} if=/dev/vda skip=1 count=${pair} | tr -s ' ' '\\n' | grep -c .`,
      );
      expect(Number(written)).toBe(pair);
      // What memory knows nothing of is not on the disk either, the write under way excepted.
      const beyond = await again.guest(
        `${read} if=/dev/vda skip=$((${pair} + 2)) count=${LOOK_AHEAD} | tr -d '\\0' | wc -c`,
      );
      expect(Number(beyond)).toBe(0);
      expect(await again.guest(`${read} if=/dev/vdb count=1 | head -n 1`)).toContain(`round-${position}`);
      await again.guest(SPOIL);
    } finally {
      await again.kill();
    }
  });

  it('are not put back when the snapshot is gone', async () => {
    cluster.rbd('snap', 'rm', '--no-progress', `vms/first@cairn-${ids[1]!}`);
    const { messages } = await runCairn(['restore', ids[1]!, '--repo', repo], options);
    expect(messages.at(-1)).toMatchObject({
      code: 'RESTORE_FAILED',
      message: expect.stringContaining(`rbd:vms/first has no snapshot cairn-${ids[1]!} any more`),
    });
  });

  it('lose their snapshots with a checkpoint that is forgotten', async () => {
    await cairn(['forget', ids[0]!, '--with-disks', '--repo', repo], options);
    for (const image of IMAGES) {
      const names = cluster.snapshotsOf(image);
      expect(names).not.toContain(`cairn-${ids[0]!}`);
      expect(names).toContain(`cairn-${ids[2]!}`);
    }
  });

  // A machine of its own: `rbd` takes a question about an image in a namespace for a write.
  describe('while the cluster answers and writes nothing (it is full)', () => {
    const plain = ['vms/third', 'vms/fourth'];
    let other: LabMachine;
    let take: readonly string[];
    let kept: readonly string[];

    beforeAll(async () => {
      const dir = scratchDir('rbd-full');
      for (const image of plain) cluster.rbd('create', image, '--size', '16M');
      other = await LabMachine.start({
        name: 'rbd-full',
        memoryMib: 192,
        dir,
        devices: [],
        extraArgs: plain.flatMap((image, i) => [
          ...['-drive', `file=rbd:${image}:conf=${cluster.conf},if=none,id=disk${i},format=raw`],
          ...['-device', `virtio-blk-pci,drive=disk${i}`],
        ]),
      });
      take = ['checkpoint', other.address, '--repo', join(dir, 'repo')];
      await cairn(['init', '--repo', join(dir, 'repo')], { dir });
      const { checkpoint_id: id } = await cairn(take, { dir });
      kept = [`cairn-${String(id)}`];
      // Has QEMU wait for all requests and write out what it holds back, so that none is under way.
      await other.qmp.command('stop');
      await cluster.fill();
      await other.qmp.command('cont');
    });
    afterAll(async () => {
      await cluster.empty();
      await other.destroy();
    });

    it('make the checkpoint fail in the pause within a bounded time, and the guest goes on', async () => {
      const { messages } = await runCairn(take, { dir: other.dir });
      expect(messages.at(-1)).toMatchObject({
        code: 'DISK_SNAPSHOT_FAILED',
        message: expect.stringMatching(/rbd:vms\/third: rbd snap create did not end in time/),
        detail: {
          possiblyPresent: [expect.stringContaining('vms/third'), expect.stringContaining('vms/fourth')],
        },
      });
      await other.waitForProgress();
    });

    it('get snapshots after all that a killed Cairn had asked for, and the next checkpoint drops them', async () => {
      const crashed = new CairnProcess(take, { dir: other.dir });
      while (!crashed.isOver && (await creatorsOf(crashed.child.pid!)) < plain.length) await sleep(50);
      crashed.child.kill('SIGKILL');
      expect(await crashed.ended).toMatchObject({ signal: 'SIGKILL' });
      await other.waitForProgress();
      for (const image of plain) expect(cluster.snapshotsOf(image)).toEqual(kept);

      await cluster.empty();
      for (const image of plain) while (cluster.snapshotsOf(image).length === kept.length) await sleep(500);
      const { checkpoint_id: id } = await cairn(take, { dir: other.dir });
      for (const image of plain) expect(cluster.snapshotsOf(image)).toEqual([...kept, `cairn-${String(id)}`]);
    });
  });
});

/** How many `rbd snap create` a process has running. */
async function creatorsOf(pid: number): Promise<number> {
  const list = await readFile(`/proc/${pid}/task/${pid}/children`, 'latin1').catch(() => '');
  const children = list.split(' ').filter((child) => child !== '');
  const commands = await Promise.all(
    children.map((child) => readFile(`/proc/${child}/cmdline`, 'latin1').catch(() => '')),
  );
  return commands.filter((command) => command.includes('\0snap\0create\0')).length;
}
