/**
 * Has a new QEMU run on its device state alone, and a page server bring its memory:
 *
 *     a pair of sockets: one end --> page server, which reads the checkpoint while QEMU starts
 *     getfd: our end of the monitor (parked), the other end of the pair
 *     page server: ready --> disks rolled back --> go --> device state --> VM runs --> running
 *
 * Up to `go` nothing has been sent, and nothing of the disks is touched before the page server has opened the
 * checkpoint. From there on the VM may run: what of its memory turns out to be damaged later keeps it waiting.
 */

import { processStartTime } from '../../../../src/host/process-identity.js';
import { CheckpointError, describeError, isCheckpointError } from '../../../../src/errors.js';
import type { PageServer, PageServerEvent } from '../../../../src/hypervisor/page-server.js';
import type { QmpClient } from '../../../qemu/qmp-client.js';
import { incomingStarted } from '../follow.js';
import { filledVmArgs } from './filled-vm.js';
import { park } from './parked-monitor.js';
import type { ServerAhead } from './server-ahead.js';
import { setPostcopy } from './serve-pages.js';

/** Of the descriptor, among those that QEMU's monitor was given. */
const STREAM_NAME = 'cairn-pages';

export interface LazyStart {
  readonly monitor: QmpClient;
  /** Process that serves the monitor. */
  readonly pid: number;
  readonly qmpPath: string;
  readonly ahead: ServerAhead;
  /** Rolls the disks back. */
  readonly beforeRun: () => Promise<void>;
  readonly hasEnded: () => string | undefined;
  readonly signal: AbortSignal | undefined;
}

export interface LazilyStarted {
  /** Run state of the VM, as QEMU calls it. */
  readonly state: string;
  /** To be called when the caller has left the monitor: from here on the page server is by itself. */
  readonly letGo: () => void;
}

/**
 * @returns the run state of the VM, whose memory is being filled from here on
 * @throws VM_UNSUPPORTED when this QEMU cannot be filled while it runs, RESTORE_FAILED, VM_PERMISSION, REPO_DAMAGED, and
 *   what `beforeRun` throws; the caller ends the QEMU
 */
export async function startLazily(start: LazyStart): Promise<LazilyStarted> {
  const { monitor, pid, qmpPath, ahead, signal } = start;
  await allowPostcopy(monitor);
  const monitorInode = await park(monitor);
  await monitor.execute('getfd', { fdname: STREAM_NAME }, { passDescriptor: ahead.theirs });
  ahead.closeTheirs();
  await monitor.execute('migrate-incoming', { uri: `fd:${STREAM_NAME}` });
  const server = await ahead.server;
  server.serve({
    vm: { pid, startTime: await processStartTime(pid) },
    vmAddress: `qmp:${qmpPath}`,
    args: filledVmArgs({ qmpPath, monitorInode }),
  });
  try {
    await said(server, 'ready', signal);
    await start.beforeRun();
    signal?.throwIfAborted();
    server.tell('go');
    await said(server, 'started', signal);
    const failed = server.ended.then((event) => {
      throw failureIn(event);
    });
    failed.catch(() => undefined);
    const state = await Promise.race([incomingStarted(start), failed]);
    return { state, letGo: () => server.tell('running') };
  } catch (error) {
    server.end();
    throw error;
  }
}

/** QEMU tries whether its kernel and its rights let it wait for pages. */
async function allowPostcopy(monitor: QmpClient): Promise<void> {
  try {
    await setPostcopy(monitor, true);
  } catch (error) {
    if (!isCheckpointError(error, 'QMP_COMMAND')) throw error;
    throw new CheckpointError(
      'VM_UNSUPPORTED',
      `no restore with --lazy: this QEMU cannot wait for its memory: ${describeError(error)}`,
      {
        cause: error,
        hint: 'its log says more; where userfaultfd is not allowed to its user, set vm.unprivileged_userfaultfd=1 or restore it without --lazy',
      },
    );
  }
}

/** @throws what the server says instead */
async function said(
  server: PageServer,
  event: PageServerEvent['event'],
  signal: AbortSignal | undefined,
): Promise<void> {
  const aborted = new Promise<never>((_, reject) => {
    const abort = (): void =>
      reject(new CheckpointError('INTERRUPTED', 'interrupted while the VM was started'));
    if (signal?.aborted === true) abort();
    signal?.addEventListener('abort', abort, { once: true });
  });
  aborted.catch(() => undefined);
  for (;;) {
    const next = await Promise.race([server.next(), aborted]);
    if (next.event === event) return;
    if (next.event === 'failed' || next.event === 'damaged' || next.event === 'lost') throw failureIn(next);
  }
}

function failureIn(event: PageServerEvent): CheckpointError {
  if (event.event === 'failed' || event.event === 'damaged') return CheckpointError.fromJSON(event.error);
  return new CheckpointError('RESTORE_FAILED', 'the page server was killed before the VM ran');
}
