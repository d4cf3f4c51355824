import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn, runCairn } from './support/cairn-cli.js';

/** Sectors past the last one written that are looked at: what a disk that was not rolled back would have there. */
const LOOK_AHEAD = 400;

describe.each(['internal', 'external'] as const)('%s disk snapshots', (mode) => {
  let machine: LabMachine;
  let options: { dir: string };
  let repo = '';
  const ids: string[] = [];
  const pairsAfter: number[] = [];

  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'disks', memoryMib: 104, devices: ['disk'] });
    options = { dir: machine.dir };
    repo = join(machine.dir, 'repo');
    await cairn(['init', '--repo', repo], options);
    await machine.guest('lab pair');
    for (let i = 0; i < 3; i++) {
      await machine.waitForProgress();
      const summary = await cairn(['checkpoint', machine.address, '--repo', repo, '--disks', mode], options);
      expect(summary).toMatchObject({ disk_snapshots: 1 });
      ids.push(String(summary.checkpoint_id));
      pairsAfter.push(Number(await machine.guest('cat /tmp/pair')));
    }
    await machine.waitForProgress();
    await machine.kill();
  });
  afterAll(() => machine.destroy());

  it.each([
    ['the last', 2],
    ['the first', 0],
    ['the last once more', 2],
  ])('bring %s checkpoint back with the disk of the same instant', async (_, position) => {
    const { pid } = await cairn(['restore', ids[position]!, '--repo', repo], options);
    const again = await LabMachine.adopt('disks', machine.dir, Number(pid));
    try {
      await again.guest('lab stop');
      const pair = Number(await again.guest('cat /tmp/pair'));
      // Not far past the checkpoint: between restore and stop the loop did a little more.
      expect(pair).toBeLessThan(pairsAfter[position]! + LOOK_AHEAD / 4);
      const written = await again.guest(
        `dd if=/dev/vda bs=512 skip=1 count=${pair} iflag=direct 2>/dev/null | tr -s ' ' '\\n' | grep -c .`,
      );
      expect(Number(written)).toBe(pair);
      // What memory knows nothing of is not on the disk either, the write under way excepted.
      const beyond = await again.guest(
        `dd if=/dev/vda bs=512 skip=$((${pair} + 2)) count=${LOOK_AHEAD} 2>/dev/null | tr -d '\\0' | wc -c`,
      );
      expect(Number(beyond)).toBe(0);
    } finally {
      await again.kill();
    }
  });

  it('are named by the checkpoint that they belong to', async () => {
    for (const id of ids) {
      const { disks } = await cairn(['show', id, '--repo', repo], options);
      const [disk] = disks as [{ path: string; mode: string; snapshot_name: string; overlay_path: string }];
      expect(disk.mode).toBe(mode);
      if (mode === 'internal') {
        const listed = execFileSync('qemu-img', ['snapshot', '-l', disk.path], { encoding: 'utf8' });
        expect(listed).toContain(disk.snapshot_name);
        expect(disk.snapshot_name).toContain(id);
      } else {
        expect(disk.overlay_path).toContain(id);
        expect(existsSync(disk.path)).toBe(true);
      }
    }
  });

  if (mode === 'external') refusesChangedImages();

  /** After all the restores above, which must not have written to any of them. */
  function refusesChangedImages(): void {
    it('are refused once somebody has committed into an image that was frozen', async () => {
      const image = join(machine.dir, 'disk.qcow2');
      const { disks } = await cairn(['show', ids[2]!, '--repo', repo], options);
      const [{ frozen }] = disks as [{ frozen: { path: string }[] }];
      // The whole chain below the last checkpoint, each image frozen by one of the three.
      expect(frozen.map(({ path }) => path)).toEqual([
        join(machine.dir, `disk.cairn-${ids[1]!}.qcow2`),
        join(machine.dir, `disk.cairn-${ids[0]!}.qcow2`),
        image,
      ]);
      execFileSync('cp', ['-p', image, `${image}.kept`]);
      execFileSync('qemu-img', ['commit', '-q', '-d', join(machine.dir, `disk.cairn-${ids[0]!}.qcow2`)]);
      for (const id of ids) {
        const { exitCode, messages } = await runCairn(['restore', id, '--repo', repo], options);
        expect(exitCode).toBe(22);
        expect(messages.at(-1)).toMatchObject({ code: 'DISK_CHANGED', detail: { path: image } });
      }
      // Put back as it was, times included, it is the same again.
      execFileSync('cp', ['-p', `${image}.kept`, image]);
      const { pid } = await cairn(['restore', ids[0]!, '--repo', repo], options);
      await (await LabMachine.adopt('disks', machine.dir, Number(pid))).kill();
    });
  }
});
