/** The file in the runtime folder in which the service says how its VMs are: `cairn status` reads it, and so does the next service. */

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import { isSameProcess, type ProcessIdentity } from '../../host/process-identity.js';
import { writeRuntimeFile } from '../../host/runtime-file.js';
import type { VmStatus } from './vm-figures.js';

const NAME = 'service-status.json';

export interface ServiceStatus {
  readonly service: ProcessIdentity;
  readonly writtenMs: number;
  /** What is wrong with the service itself, such as a file that it could not read again; empty when nothing is. */
  readonly problem: string;
  readonly vms: readonly VmStatus[];
}

export function writeStatus(runtimeDir: string, status: ServiceStatus): Promise<void> {
  return writeRuntimeFile(join(runtimeDir, NAME), JSON.stringify(status));
}

/** Undefined when no service has ever run since this host was started. */
export async function readStatus(
  runtimeDir: string,
): Promise<(ServiceStatus & { readonly isRunning: boolean }) | undefined> {
  const text = await readFile(join(runtimeDir, NAME), 'utf8').catch(() => '');
  if (text === '') return undefined;
  const status = JSON.parse(text) as ServiceStatus;
  const { pid, startTime } = status.service;
  return { ...status, isRunning: await isSameProcess(pid, startTime) };
}
