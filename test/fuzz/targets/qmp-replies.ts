/**
 * Replies of QEMU that are JSON, but not what they should be: the input maps commands to replies, and all that the adapters
 * find out about a VM asks for them.
 */

import { listRamBlocks } from '../../../adapters/kvm/memory/ram-blocks.js';
import { hazardsOf, takeInventory } from '../../../adapters/kvm/inspect/hazards.js';
import { machineFacts } from '../../../adapters/kvm/inspect/machine-facts.js';
import { runStateOf } from '../../../adapters/kvm/run/run-states.js';
import { recordedAgentPath } from '../../../adapters/kvm/run/guest-agent/agent-path.js';
import { migrationStatus } from '../../../adapters/kvm/trackers/qmp-stream/abandon.js';
import { Migration } from '../../../adapters/kvm/trackers/qmp-stream/migration.js';
import { planSettings, setSettings } from '../../../adapters/kvm/trackers/qmp-stream/settings.js';
import {
  hasFreePageHints,
  losesWrites,
  qmpStreamReport,
} from '../../../adapters/kvm/trackers/qmp-stream/support.js';
import { resultOf as libvirtResult } from '../../../adapters/libvirt/qemu/monitor.js';
import { monitorOverlays } from '../../../adapters/disks/qcow2/monitor-snapshots.js';
import { listDisks } from '../../../adapters/qemu/block-devices.js';
import { asObject } from '../../../adapters/qemu/qmp-json.js';
import { DeviceState } from '../../../adapters/qemu/device-state.js';
import { isCheckpointError } from '../../../src/errors.js';
import { processStartTime } from '../../../src/host/process-identity.js';
import type { Json, JsonObject } from '../../../src/types.js';
import { FakeMonitor } from '../../support/fake-monitor.js';
import { mutateJson } from '../mutate-json.js';
import type { OpenTarget } from '../target.js';

const RAM_TABLE = [
  '              Block Name    PSize              Offset               Used              Total                HVA  RO',
  '                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f1122200000  rw',
  '                vga.vram    4 KiB  0x0000000010000000 0x0000000001000000 0x0000000001000000 0x00007f1122100000  rw',
  '',
].join('\r\n');

const REPLIES: JsonObject = {
  'query-name': { name: 'web1' },
  'query-uuid': { UUID: '5e1f0c1e-0000-4000-8000-000000000001' },
  'qom-get': 'pc-i440fx-7.2-machine',
  'query-target': { arch: 'x86_64' },
  'query-version': { qemu: { major: 7, minor: 2, micro: 22 }, package: '' },
  'query-status': { status: 'running', running: true, singlestep: false },
  'query-kvm': { enabled: true, present: true },
  'query-migrate': {
    status: 'active',
    'blocked-reasons': ['a device', 'another'],
    'error-desc': 'why',
    ram: { remaining: 4096, transferred: 8192, 'dirty-sync-count': 2 },
  },
  'query-migrate-capabilities': [
    { capability: 'xbzrle', state: true },
    { capability: 'events', state: false },
  ],
  'query-migrate-parameters': { 'max-bandwidth': 1, 'downtime-limit': 300, 'tls-creds': '', mode: 'normal' },
  'qom-list': [
    { name: 'balloon0', type: 'child<virtio-balloon-pci>' },
    { name: 'mem0', type: 'child<memory-backend-file>' },
  ],
  'query-memdev': [{ id: 'mem0', share: true, size: 1 }],
  'query-block': [
    {
      device: 'drive0',
      inserted: {
        file: '/a.qcow2',
        drv: 'qcow2',
        ro: false,
        'node-name': '#block1',
        image: {
          filename: '/a.qcow2',
          format: 'qcow2',
          'virtual-size': 1048576,
          'backing-image': { filename: '/b.qcow2', 'backing-image': { filename: '/c.qcow2' } },
        },
      },
    },
    { device: 'cd0' },
  ],
  'add-fd': { 'fdset-id': 1, fd: 20 },
  'human-monitor-command': RAM_TABLE,
  getfd: {},
};

export const openTarget: OpenTarget = async () => {
  // This process in the place of QEMU's.
  const qemu = {
    pid: process.pid,
    startTime: await processStartTime(process.pid),
    program: process.execPath,
  };
  const questions: readonly ((monitor: FakeMonitor) => Promise<unknown>)[] = [
    (monitor) => machineFacts(monitor, qemu, '/qmp').then(({ machine }) => recordedAgentPath(machine)),
    (monitor) => takeInventory(monitor, qemu.pid, []).then(hazardsOf),
    listDisks,
    listRamBlocks,
    (monitor) => monitor.execute('query-status').then(runStateOf),
    migrationStatus,
    (monitor) =>
      planSettings(monitor).then(({ apply, putBack }) =>
        Promise.all([apply, putBack].map((settings) => setSettings(monitor, settings))),
      ),
    losesWrites,
    hasFreePageHints,
    (monitor) => qmpStreamReport(monitor, { memoryBytes: 1 << 20, seesSharers: false }),
    (monitor) =>
      monitorOverlays(monitor).take([{ diskId: 'drive0', path: '/a', overlayPath: '/nowhere/a.b' }]),
    (monitor) => DeviceState.open(monitor).then((state) => state.close()),
    followMigration,
    (monitor) =>
      monitor.execute('query-block').then((reply) => libvirtResult('query-block', JSON.stringify(reply))),
  ];
  return {
    seeds: [Buffer.from(JSON.stringify(REPLIES))],
    mutate: mutateJson,
    run: async (input) => {
      const replies = repliesIn(input);
      const ends: string[] = [];
      for (const [i, question] of questions.entries()) {
        try {
          await question(new FakeMonitor((command) => replies[command] ?? {}));
        } catch (error) {
          if (!isCheckpointError(error)) throw error;
          ends.push(`${i} ${error.code}`);
        }
      }
      return ends.join(' ');
    },
  };
};

async function followMigration(monitor: FakeMonitor): Promise<void> {
  const migration = await Migration.start(monitor, 0);
  try {
    await migration.progress();
    const status = await monitor.execute('query-migrate');
    for (const event of ['MIGRATION', 'MIGRATION_PASS', 'STOP', 'RESUME'])
      monitor.emit(event, asObject(status));
  } finally {
    migration.close();
  }
}

/** As the client hands them on: a line that is too long or too deep is none of its replies. */
function repliesIn(input: Uint8Array): Readonly<Record<string, Json>> {
  try {
    const replies = JSON.parse(Buffer.from(input).toString('utf8')) as Json;
    JSON.stringify(replies);
    return typeof replies === 'object' && replies !== null ? (replies as JsonObject) : {};
  } catch {
    return {};
  }
}
