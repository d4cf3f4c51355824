/**
 * Files of the runtime folder, where a Cairn that was killed has left half of one, or another program has written: the ledger,
 * records of trackers, markers of pauses, notes of VMs that are being filled. What is there counts as nothing, or as what it says; it never stops a checkpoint.
 *
 *     input = name of the file | 0a | its bytes
 */

import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { isLeftPaused, readPauseMarker } from '../../../adapters/guard/pause-marker.js';
import { RamBlocks } from '../../../adapters/kvm/memory/ram-blocks.js';
import { readArming as readScanArming } from '../../../adapters/kvm/trackers/pagemap-scan/arming.js';
import { finishStream, recoverStream } from '../../../adapters/kvm/trackers/qmp-stream/stream-marker.js';
import { readArming, takeState } from '../../../adapters/kvm/trackers/soft-dirty/arming.js';
import { readRecord } from '../../../adapters/xen/trackers/log-dirty-record.js';
import { sweepRuntimeDir } from '../../../adapters/qemu/runtime-files.js';
import { Ledger } from '../../../src/checkpoint/trust/ledger.js';
import { SnapshotRecord } from '../../../src/disks/begun-snapshots.js';
import { isCheckpointError } from '../../../src/errors.js';
import { fillingNotes } from '../../../src/host/filling-note.js';
import { layOut } from '../../../src/hypervisor/memory-layout.js';
import type { VmIdentity } from '../../../src/hypervisor/vm.js';
import type { Vm } from '../../../src/hypervisor/vm.js';
import { FakeMonitor } from '../../support/fake-monitor.js';
import { mutateBytes } from '../mutate-bytes.js';
import { mutateJson } from '../mutate-json.js';
import type { Mutate, OpenTarget } from '../target.js';

const DEAD = { pid: 2 ** 30, startTime: '77' };
const IDENTITY: VmIdentity = {
  hypervisor: 'kvm',
  name: 'web1',
  uuid: '',
  machineType: 'pc',
  instance: `${DEAD.pid}:${DEAD.startTime}`,
};
const LAYOUT = layOut([{ id: 'pc.ram', sizeBytes: 64 * 4096 }]);
const RANGES = [{ id: 'pc.ram', start: 4096, sizeBytes: 64 * 4096 }];
const PROCESS = { ...DEAD, program: '/usr/bin/qemu' };
const OF_PROCESS = `${DEAD.pid}-${DEAD.startTime}.json`;
const NAMES = {
  ledger: `ledger-kvm-${DEAD.pid}_${DEAD.startTime}`,
  snapshots: `ledger-kvm-${DEAD.pid}_${DEAD.startTime}.snapshots`,
  paused: `paused-${OF_PROCESS}`,
  stream: `stream-${OF_PROCESS}`,
  softDirty: `soft-dirty-${OF_PROCESS}`,
  softDirtyState: `soft-dirty-${OF_PROCESS}.state`,
  scan: `uffd-${OF_PROCESS}`,
  logDirty: 'xen-logdirty-7.json',
  ramBlocks: `ramblocks-${OF_PROCESS}`,
  filling: `filling-${DEAD.pid}-${DEAD.startTime}.json`,
} as const;

const CONTENTS: Readonly<Record<string, unknown>> = {
  [NAMES.ledger]: { state: 'clean', token: 'a', repositoryId: 'b', chain: 'c', checkpointId: 'd' },
  [NAMES.snapshots]: [
    {
      repositoryId: 'r',
      checkpointId: 'c',
      snapshots: [{ diskId: 'd', path: '/p', mode: 'lvm', snapshotName: 's', volume: { vgName: 'v' } }],
    },
  ],
  [NAMES.paused]: { ...DEAD, attachment: 'a', agentPath: '/ga' },
  [NAMES.stream]: {
    ...DEAD,
    attachment: 'a',
    putBack: { capabilities: [{ capability: 'xbzrle', state: true }], parameters: { 'max-bandwidth': 1 } },
    isOver: false,
  },
  [NAMES.softDirty]: { token: 't', mark: 'ab'.repeat(32), canaryAddress: 4096, ranges: RANGES },
  [NAMES.softDirtyState]: { token: 't', absent: [0, 3, 8, 2], migrations: '1' },
  [NAMES.scan]: { descriptor: 3, inode: 4, token: 't', ranges: RANGES },
  [NAMES.logDirty]: { token: 't', regions: 'pc.ram:64', present: 'AAAAAAMAAAA=' },
  [NAMES.ramBlocks]: { 'pc.ram': 4096 },
  [NAMES.filling]: {
    ...{ state: 'filling', vmAddress: 'qmp:/a', vmName: 'web1', vm: DEAD, server: DEAD },
    ...{ repository: 'file:/srv', checkpointId: 'c', args: { qmpPath: '/a', monitorInode: 7 }, damage: {} },
    ...{ bytesPerSecond: 1, totalPages: 2, donePages: 1, isAwaited: false },
  },
};

function partsOf(input: Uint8Array): readonly [name: string, bytes: Uint8Array] {
  const end = input.indexOf(0x0a);
  const name = Buffer.from(input.subarray(0, Math.max(0, end))).toString('latin1');
  return [name, input.subarray(end + 1)];
}

const mutate: Mutate = (input, random, others) => {
  const [name, bytes] = partsOf(input);
  const change = random(4) === 0 ? mutateBytes : mutateJson;
  return Buffer.concat([Buffer.from(`${name}\n`), change(bytes, random, others)]);
};

export const openTarget: OpenTarget = (workDir) => {
  const dir = join(workDir, 'runtime');
  const at = (name: string): string => join(dir, name);
  const monitor = new FakeMonitor(() => ({ status: 'running' }));
  const vm = { identity: IDENTITY, disks: { drop: () => Promise.resolve() } } as unknown as Vm;
  const readers: Readonly<Record<string, () => unknown>> = {
    [NAMES.ledger]: () => new Ledger(dir, IDENTITY).read(),
    [NAMES.snapshots]: () => new SnapshotRecord(dir, vm, 'r', 'memory:').settle(() => Promise.resolve(false)),
    [NAMES.paused]: () => {
      readPauseMarker(at(NAMES.paused));
      return isLeftPaused(at(NAMES.paused));
    },
    [NAMES.stream]: () =>
      finishStream(at(NAMES.stream), monitor).then(() => recoverStream(at(NAMES.stream), monitor)),
    [NAMES.softDirty]: () => readArming(at(NAMES.softDirty), RANGES),
    [NAMES.softDirtyState]: () => takeState(at(NAMES.softDirty), 't', LAYOUT.pageSpan),
    [NAMES.scan]: () => readScanArming(at(NAMES.scan)),
    [NAMES.filling]: () => fillingNotes(dir),
    [NAMES.logDirty]: () => readRecord(at(NAMES.logDirty), LAYOUT),
    [NAMES.ramBlocks]: () =>
      new RamBlocks(monitor, PROCESS, dir).list().catch((error: unknown) => {
        if (!isCheckpointError(error)) throw error;
      }),
  };
  return Promise.resolve({
    seeds: Object.entries(CONTENTS).map(([name, value]) => Buffer.from(`${name}\n${JSON.stringify(value)}`)),
    mutate,
    run: async (input) => {
      const [name, bytes] = partsOf(input);
      const read = readers[name];
      if (read === undefined) return 'no file';
      rmSync(dir, { recursive: true, force: true });
      mkdirSync(dir);
      writeFileSync(at(name), bytes);
      const found: unknown = await read();
      await sweepRuntimeDir(dir);
      return `${name} ${Array.isArray(found) ? found.length : typeof found}`;
    },
  });
};
