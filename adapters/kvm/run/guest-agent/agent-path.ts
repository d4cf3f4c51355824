/** Where a QEMU command line has the socket of the guest's agent: the chardev behind the port of its name. */

import { resolve } from 'node:path';

import type { JsonObject } from '../../../../src/types.js';
import {
  parseCommandLine,
  splitValue,
  unescapeCommas,
  valueOf,
  type QemuOption,
} from '../../../disks/qcow2/command-line.js';
import { AGENT_PORT } from './guest-agent.js';

/** Absolute; undefined when there is no such port, or what is behind it is no socket that QEMU listens on. */
export function agentPathIn(options: readonly QemuOption[], cwd: string): string | undefined {
  const port = options.find(
    ({ name, value = '' }) =>
      name === 'device' &&
      valueOf(value, 'driver', 'driver') === 'virtserialport' &&
      valueOf(value, 'name') === AGENT_PORT,
  );
  const id = port?.value === undefined ? undefined : valueOf(port.value, 'chardev');
  const chardev = options.find(
    ({ name, value = '' }) => name === 'chardev' && id !== undefined && valueOf(value, 'id') === id,
  )?.value;
  if (chardev === undefined || unescapeCommas(splitValue(chardev)[0] ?? '') !== 'socket') return undefined;
  const path = valueOf(chardev, 'path');
  const serves = splitValue(chardev).some((part) => /^server(=on|=yes)?$/.test(part));
  return path === undefined || path === '' || !serves ? undefined : resolve(cwd, path);
}

/** The same of a running VM's `Vm.machine`; empty when there is none. */
export function recordedAgentPath({ argv, cwd }: JsonObject): string {
  if (!Array.isArray(argv)) return '';
  const words = (argv as readonly unknown[]).filter((word) => typeof word === 'string');
  return agentPathIn(parseCommandLine(words.slice(1)), typeof cwd === 'string' ? cwd : '/') ?? '';
}
