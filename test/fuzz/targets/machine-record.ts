/**
 * What a manifest recorded of how a QEMU was started, up to the command line with which it would be started again: options
 * taken apart, disks and sockets found, arguments edited, secrets left out. Nothing is started.
 */

import { diskReferences } from '../../../adapters/disks/qcow2/restore-disk-options.js';
import { formatCommandLine, parseCommandLine } from '../../../adapters/disks/qcow2/command-line.js';
import { restoredCommandLine } from '../../../adapters/kvm/restore/argv.js';
import { recordedMachine } from '../../../adapters/kvm/restore/machine.js';
import { withoutOptionValues } from '../../../adapters/kvm/restore/redact.js';
import { serverPaths } from '../../../adapters/kvm/restore/sockets.js';
import { agentPathIn, recordedAgentPath } from '../../../adapters/kvm/run/guest-agent/agent-path.js';
import { folderOf } from '../../../adapters/disks/disk-drivers.js';
import { isCheckpointError } from '../../../src/errors.js';
import type { JsonObject } from '../../../src/types.js';
import { mutateJson } from '../mutate-json.js';
import { must, type OpenTarget } from '../target.js';

interface RecordInput {
  readonly machine: JsonObject;
  readonly setArgs: readonly string[];
  readonly dropArgs: readonly string[];
}

const ARGV = [
  ...[
    'qemu-system-x86_64',
    '-M',
    'pc,accel=tcg',
    '-m',
    '160M',
    '-name',
    'web1,process=a',
    '-S',
    '-daemonize',
  ],
  ...['-drive', 'file=/a,,b.qcow2,if=virtio,format=qcow2', '-hda', 'b.img', 'c.img', '-cdrom', 'file:d.iso'],
  ...['-blockdev', '{"driver":"qcow2","node-name":"n1","file":{"driver":"file","filename":"/e.qcow2"}}'],
  ...[
    '-blockdev',
    'driver=file,filename=/f.img,node-name=f0',
    '-blockdev',
    'driver=raw,file=f0,node-name=f1',
  ],
  ...['-chardev', 'socket,id=q,path=/run/q.sock,server=on,wait=off', '-mon', 'chardev=q,mode=control'],
  ...[
    '-qmp',
    'unix:/run/w.sock,server=on,wait=off',
    '-object',
    'secret,id=s,data=geheim',
    '-vnc',
    'unix:/run/v',
  ],
  ...[
    '-device',
    'virtserialport,chardev=a0,name=org.qemu.guest_agent.0',
    '-chardev',
    'socket,id=a0,path=/ga,server',
  ],
];
const MACHINE = {
  argv: ARGV,
  cwd: '/srv',
  program: '/usr/bin/qemu-system-x86_64',
  env: { LD_LIBRARY_PATH: '/opt' },
  qemuVersion: '7.2.22',
  machineType: 'pc-i440fx-7.2',
  qmpPath: '/run/w.sock',
};
/** What had changed since it was started. */
const PRESENT = {
  presentDisks: [
    {
      device: 'ide0-hd0',
      path: '/b.img',
      format: 'raw',
      readOnly: false,
      option: 3,
      limits: { iops: 70, group: 'g' },
    },
    { device: 'ide1-cd0', path: '', format: '', readOnly: true, temporary: true },
  ],
  presentObjects: [
    { id: 'g', type: 'throttle-group', settings: { limits: { 'iops-total': 70 }, 'poll-max-ns': 1 } },
  ],
};

export const openTarget: OpenTarget = () =>
  Promise.resolve({
    seeds: [
      Buffer.from(
        JSON.stringify({ machine: MACHINE, setArgs: ['-name=web2', '-drive#2=file=/x'], dropArgs: ['-vnc'] }),
      ),
      Buffer.from(
        JSON.stringify({
          machine: { ...MACHINE, ...PRESENT },
          setArgs: [],
          dropArgs: ['-hda', '-blockdev#3'],
        }),
      ),
      Buffer.from(
        JSON.stringify({ machine: { ...MACHINE, qmpPath: '' }, setArgs: ['-machine=q35'], dropArgs: [] }),
      ),
    ],
    mutate: mutateJson,
    run: (input) => {
      const { machine: recorded, setArgs, dropArgs } = inputIn(input);
      const machine = recordedMachine(recorded);
      recordedAgentPath(recorded);
      folderOf(recorded);
      const options = parseCommandLine(machine.argv);
      must(
        formatCommandLine(options).length <= machine.argv.length,
        'the options are those of the command line',
      );
      const cwd = machine.cwd;
      const ends: string[] = [];
      const attempt = (name: string, work: () => unknown): void => {
        try {
          work();
        } catch (error) {
          if (!isCheckpointError(error)) throw error;
          ends.push(`${name} ${error.code}`);
        }
      };
      attempt('restored', () => {
        const request = { setArgs, dropArgs, socketPath: undefined, paused: false };
        const line = restoredCommandLine(machine, request);
        const again = parseCommandLine(formatCommandLine(line.options));
        must(again.at(-1)?.name === 'incoming' && again.at(-1)?.value === 'defer', 'it waits for the stream');
        must(again.length === line.options.length, 'the options are taken apart the same way again');
      });
      attempt('disks', () => {
        for (const reference of diskReferences(options, cwd))
          attempt('replace', () => reference.replace(options, '/new.qcow2'));
      });
      attempt('sockets', () => serverPaths(options, cwd));
      attempt('agent', () => agentPathIn(options, cwd));
      attempt('redacted', () => withoutOptionValues('qemu: -drive file=/a: no such file', options));
      return Promise.resolve(ends.join(' '));
    },
  });

/** A manifest that is no object or too deep is refused before; edits are words of a command line. */
function inputIn(input: Uint8Array): RecordInput {
  try {
    const read = JSON.parse(Buffer.from(input).toString('utf8')) as Partial<
      Record<keyof RecordInput, unknown>
    >;
    const words = (value: unknown): readonly string[] =>
      Array.isArray(value) ? value.filter((word): word is string => typeof word === 'string') : [];
    const isObject =
      typeof read.machine === 'object' && read.machine !== null && !Array.isArray(read.machine);
    JSON.stringify(read);
    return {
      machine: isObject ? (read.machine as JsonObject) : {},
      setArgs: words(read.setArgs),
      dropArgs: words(read.dropArgs),
    };
  } catch {
    return { machine: {}, setArgs: [], dropArgs: [] };
  }
}
