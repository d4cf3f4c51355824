/**
 * Who a QEMU is and how it was started: from the monitor and from /proc. Asked once, when the VM is attached.
 */

import { readlink } from 'node:fs/promises';

import { CheckpointError, isCheckpointError, systemErrorCode } from '../../../src/errors.js';
import { readProcessText } from '../../../src/host/process-text.js';
import type { VmIdentity } from '../../../src/hypervisor/vm.js';
import type { Json, JsonObject } from '../../../src/types.js';
import type { Monitor } from '../../qemu/monitor.js';
import type { QemuProcess } from '../../qemu/peer-process.js';
import { asNumber, asObject, asText } from '../../qemu/qmp-json.js';
import { keptEnvironment } from './kept-environment.js';
import { rightsOf } from './process-rights.js';
import { rightsRecord } from './rights-record.js';
import { startFolder } from './start-folder.js';

const NO_UUID = '00000000-0000-0000-0000-000000000000';

export interface MachineFacts {
  readonly identity: VmIdentity;
  /** argv, cwd, program, env, rights, qemuVersion, machineType, qmpPath: what a restore starts from. */
  readonly machine: JsonObject;
}

/**
 * The only target whose checkpoints are proven: what lies outside of its RAM blocks and device sections on others, and
 * which sections come before memory, is not known.
 */
const TARGET = 'x86_64';

/** @throws VM_UNSUPPORTED for another target than x86-64, VM_GONE, VM_PERMISSION, QMP_COMMAND */
export async function machineFacts(
  monitor: Monitor,
  process: QemuProcess,
  qmpPath: string,
): Promise<MachineFacts> {
  const target = asText(asObject(await monitor.execute('query-target')).arch);
  if (target !== TARGET) {
    throw new CheckpointError(
      'VM_UNSUPPORTED',
      `the VM is one of qemu-system-${target}, and Cairn knows ${TARGET} alone`,
      {
        hint: 'save it with QEMU itself (migrate to a file), which knows all that it has',
        detail: { target },
      },
    );
  }
  const [name, uuid, type, version] = await Promise.all([
    monitor.execute('query-name'),
    monitor.execute('query-uuid'),
    monitor.execute('qom-get', { path: '/machine', property: 'type' }),
    monitor.execute('query-version'),
  ]);
  const machineType = asText(type).replace(/-machine$/, '');
  const foundUuid = asText(asObject(uuid).UUID);
  return {
    identity: {
      hypervisor: 'kvm',
      name: asText(asObject(name).name),
      uuid: foundUuid === NO_UUID ? '' : foundUuid,
      machineType,
      instance: `${process.pid}:${process.startTime}`,
    },
    machine: {
      ...(await startedAs(process)),
      qemuVersion: versionText(version),
      machineType,
      qmpPath,
    },
  };
}

async function startedAs({ pid, program, openedMonitorAs }: QemuProcess): Promise<JsonObject> {
  try {
    const [rights, commandLine, cwd, environment] = await Promise.all([
      rightsOf(pid),
      readProcessText(`/proc/${pid}/cmdline`),
      readlink(`/proc/${pid}/cwd`).catch(unlessForbidden('/')),
      readProcessText(`/proc/${pid}/environ`).catch(unlessForbidden('')),
    ]);
    const argv = commandLine.replace(/\0$/, '').split('\0');
    return {
      argv,
      cwd: await startFolder(pid, argv, cwd, environment),
      program,
      env: keptEnvironment(environment),
      rights: rightsRecord({ ...rights, openedMonitorAs }),
    };
  } catch (cause) {
    if (isCheckpointError(cause)) throw cause;
    throw new CheckpointError('VM_PERMISSION', `cannot read how process ${pid} was started`, {
      cause,
      hint: 'run as root, or as the user of QEMU',
    });
  }
}

/**
 * An unprivileged Cairn sees the command line only. That is enough for a QEMU that was started with absolute
 * paths, as managers do; relative ones do not resolve, and a restore says which.
 */
function unlessForbidden(instead: string): (error: unknown) => string {
  return (error) => {
    if (['EACCES', 'EPERM'].includes(systemErrorCode(error) ?? '')) return instead;
    throw error;
  };
}

function versionText(version: Json): string {
  const qemu = asObject(asObject(version).qemu);
  return ['major', 'minor', 'micro'].map((part) => asNumber(qemu[part])).join('.');
}
