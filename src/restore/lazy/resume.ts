/** A page server in the place of one that has ended. */

import { resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError } from '../../errors.js';
import { fillingNoteOf, isServed, type FillingNote } from '../../host/filling-note.js';
import { fillRateOf } from '../../hypervisor/fill-rate.js';
import type { HypervisorRegistry } from '../../hypervisor/registry.js';
import { Filling } from './filling.js';
import { StartedPageServer } from './page-server.js';

/** The one that looks after the server starts another one within this time. */
const KEEPER_MS = 1000;
const POLL_MS = 20;

export interface ResumeOptions {
  readonly hypervisors: HypervisorRegistry;
  readonly runtimeDir: string;
  /** Address of the repository, when it lies elsewhere now. */
  readonly repository?: string | undefined;
  /** As `fillRateOf` takes it; default: as before. */
  readonly fillRate?: string | undefined;
}

/**
 * A server that still fills the VM is left alone, unless it has met what it cannot read: that one is ended.
 * @param given the VM's address, as the restore said it; a path in it may be a relative one
 * @throws USAGE, VM_ADDRESS when no VM of that address is being filled, VM_FILLING when a server does it, REPO_DAMAGED,
 *   VM_PERMISSION, RESTORE_FAILED
 */
export async function resumeFilling(given: string, options: ResumeOptions): Promise<Filling> {
  const { hypervisors, runtimeDir } = options;
  const find = (): FillingNote | undefined =>
    fillingNoteOf(runtimeDir, (one) => isSameAddress(one.vmAddress, given));
  const { fillRate } = options;
  const bytesPerSecond = fillRate === undefined ? undefined : fillRateOf(fillRate);
  let note = find();
  if (note === undefined) throw nobodyFills(given);
  if (note.state === 'damaged') await endServer(note);
  const untilMs = Date.now() + KEEPER_MS;
  for (;;) {
    if (note.state !== 'damaged' && (await isServed(note))) throw served(note);
    if (Date.now() > untilMs || note.state === 'damaged') break;
    await delay(POLL_MS);
    note = find();
    if (note === undefined) throw nobodyFills(given);
  }
  const { vmAddress } = note;
  const { pageServingModule } = hypervisors.forAddress(vmAddress);
  if (pageServingModule === undefined) throw nobodyFills(vmAddress);
  const server = await StartedPageServer.start(
    {
      ...{ vmName: note.vmName, bytesPerSecond: bytesPerSecond ?? note.bytesPerSecond },
      ...{ repository: options.repository ?? note.repository, checkpointId: note.checkpointId },
      ...{ modulePath: pageServingModule, runtimeDir, hasStream: false },
    },
    undefined,
  );
  server.serve({ vm: note.vm, vmAddress, args: note.args });
  return new Filling(server);
}

function isSameAddress(known: string, given: string): boolean {
  const absolute = (address: string): string => {
    const colon = address.indexOf(':');
    return `${address.slice(0, colon)}:${resolve(address.slice(colon + 1))}`;
  };
  return known === given || absolute(known) === absolute(given);
}

/** SIGTERM ends it as anything else would: what it has sent, the VM has. */
async function endServer(note: FillingNote): Promise<void> {
  while (await isServed(note)) {
    process.kill(note.server.pid, 'SIGTERM');
    await delay(POLL_MS);
  }
}

function served({ vmAddress, server }: FillingNote): CheckpointError {
  return new CheckpointError('VM_FILLING', `process ${server.pid} is filling ${vmAddress} already`, {
    hint: 'cairn doctor says how far it is',
    retryable: true,
    detail: { pid: server.pid },
  });
}

function nobodyFills(vmAddress: string): CheckpointError {
  return new CheckpointError('VM_ADDRESS', `no VM of the address ${vmAddress} is being filled`, {
    hint: 'cairn list names those that are',
  });
}
