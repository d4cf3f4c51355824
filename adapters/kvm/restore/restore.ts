/**
 * Bringing a QEMU VM back: an unmodified QEMU is started with the recorded command line and -incoming, and
 * gets a complete migration stream made from the checkpoint. It starts with the rights that it had.
 *
 *     recorded command line --edits--> new QEMU, waiting ---QMP: getfd, migrate-incoming---> socket
 *     pages, verified as they are read --> stream ----------------------------------------------^
 *
 * With `lazy` it runs on its device state, and a page server brings its memory meanwhile (`lazy/start-lazily.ts`).
 *
 * Invariant: otherwise a VM runs only when the whole checkpoint has been read, verified and loaded. On any failure
 * before that the new QEMU is killed, and the disks are put back to what they were; a QEMU that loses its stream (Cairn killed in the middle) ends by
 * itself.
 */

import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import { fillRateOf } from '../../../src/hypervisor/fill-rate.js';
import type { CheckpointSource, RestoreResult } from '../../../src/hypervisor/restore.js';
import { agentPathIn } from '../run/guest-agent/agent-path.js';
import { tendBySocket } from '../run/guest-agent/restored-guest.js';
import type { QmpClient } from '../../qemu/qmp-client.js';
import { rightsOf } from '../inspect/process-rights.js';
import { disksOfStoppedQemu, folderOf, removeStandIns, type DiskDrivers } from '../../disks/disk-drivers.js';
import { formatCommandLine, type QemuOption } from '../../disks/qcow2/command-line.js';
import { RestoredImages } from '../../disks/qcow2/restored-images.js';
import { withDisksPutBack, type RolledBack } from '../../disks/rolled-back.js';
import { asRecorded } from './as-recorded.js';
import { incomingCompleted } from './follow.js';
import { refuseLazily, refuseTarget } from './lazy/refusals.js';
import { ServerAhead } from './lazy/server-ahead.js';
import { startLazily } from './lazy/start-lazily.js';
import { openLog } from './log-file.js';
import { refuseMissing } from './missing-paths.js';
import { refuseNeighbours } from './neighbours.js';
import type { KvmRestoreRequest } from './options.js';
import { OwnFailure, ownStep } from './own-failure.js';
import { RestoredQemu } from './process.js';
import { withoutOptionValues } from './redact.js';
import { sendStream } from './send-stream.js';
import { checkSocketsFree } from './sockets.js';
import { withRights } from './start-command.js';
import { refuseMoreRights, type StartRights } from './start-rights.js';
import { allowStart, planStart, type PlannedStart } from './start.js';
import { withStandIns, type StoodIn } from './stand-ins.js';
import { restoreIntoTarget } from './target.js';
import { deviceSections } from '../../qemu/stream/device-state.js';

/** How long a QEMU that closed the stream gets to say why and exit. */
const EXIT_WAIT_MS = 3000;

/**
 * @throws RESTORE_RIGHTS, RESTORE_REPLACEABLE; RESTORE_TARGET_BUSY when a socket or a disk of the VM is in
 *   use, VM_UNSUPPORTED when the command
 *   line cannot be started again, USAGE for wrong edits, STREAM_MALFORMED, REPO_DAMAGED and RESTORE_FAILED
 *   with nothing left running, INTERRUPTED
 */
export async function restoreCheckpoint(
  source: CheckpointSource,
  request: KvmRestoreRequest,
): Promise<RestoreResult> {
  try {
    request.signal?.throwIfAborted();
    refuseTarget(request);
    const sections = deviceSections(await source.deviceState());
    if (request.target !== undefined)
      return await restoreIntoTarget(source, sections, request.target, request);
    return await restoreIntoNewQemu(source, sections, request);
  } catch (error) {
    if (request.signal?.aborted === true) {
      throw new CheckpointError(
        'INTERRUPTED',
        `restoring ${source.checkpointId} was interrupted; nothing was left running`,
      );
    }
    if (isCheckpointError(error)) throw error;
    const text = `restoring ${source.checkpointId}: ${describeError(error)}`;
    throw new CheckpointError('RESTORE_FAILED', text, { cause: error });
  }
}

async function restoreIntoNewQemu(
  source: CheckpointSource,
  sections: Uint8Array,
  request: KvmRestoreRequest,
): Promise<RestoreResult> {
  const start = await planStart(source.machine, request);
  if (request.lazy === true) refuseLazily(start.options);
  const rights = await allowStart(start, request.asRoot === true);
  const disks = request.keepDisks ? [] : source.disks;
  const images = new RestoredImages(folderOf(source.machine));
  const drivers = disksOfStoppedQemu(source.machine, images);
  await refuseMissing(start);
  await checkSocketsFree(start.options, start.cwd, start.qmpPath);
  await drivers.check(disks);
  const standIns = drivers.standIns(disks, source.checkpointId);
  const stoodIn = await withStandIns(standIns, start.options, start.cwd);
  let ahead: ServerAhead | undefined;
  try {
    await refuseNeighbours(stoodIn.options, start.cwd);
    ahead = request.lazy === true ? startServerAhead(request) : undefined;
    const command = { program: start.program, argv: formatCommandLine(stoodIn.options), env: start.env };
    const log = await openLog(request.logPath, start.qmpPath);
    const qemu = await RestoredQemu.start({
      ...(await withRights(command, rights.change)),
      cwd: start.cwd,
      qmpPath: start.qmpPath,
      log: log.file,
    });
    const load: Load = { source, sections, request, rights, drivers, images, start, stoodIn, ahead };
    try {
      const { streamBytes, running } = await loadInto(qemu, load);
      await log.belongsTo(qemu.pid);
      const agentPath = request.guestAgent ?? agentPathIn(stoodIn.options, start.cwd);
      const tended = await tendBySocket(source, running, agentPath, request);
      const notes = [...rights.notes, ...(tended.notes ?? [])];
      return {
        ...{ vmAddress: `qmp:${start.qmpPath}`, pid: qemu.pid, running, streamBytes, ...tended },
        ...(notes.length === 0 ? {} : { notes }),
      };
    } catch (error) {
      const failure = await afterFailure(qemu, error, stoodIn.options, request.signal?.aborted === true);
      images.monitor = undefined;
      await log.drop();
      throw await withDisksPutBack(failure, load.rolledBack, request.signal?.aborted === true);
    } finally {
      await qemu.release();
    }
  } catch (error) {
    await ahead?.drop();
    await removeStandIns(stoodIn.created);
    throw error;
  }
}

interface Load {
  readonly source: CheckpointSource;
  readonly sections: Uint8Array;
  readonly request: KvmRestoreRequest;
  readonly rights: StartRights;
  readonly drivers: DiskDrivers;
  readonly images: RestoredImages;
  readonly start: PlannedStart;
  readonly stoodIn: StoodIn;
  /** Of a VM that is to run before it has its memory. */
  readonly ahead: ServerAhead | undefined;
  /** Set once the disks are those of the checkpoint. */
  rolledBack?: RolledBack;
}

async function loadInto(
  qemu: RestoredQemu,
  load: Load,
): Promise<{ readonly streamBytes: number; readonly running: boolean }> {
  const { request, rights } = load;
  let monitor: QmpClient | undefined;
  let letGo: (() => void) | undefined;
  try {
    monitor = await qemu.connect(request.signal, request.lazy === true);
    if (rights.atMost !== undefined) refuseMoreRights(await rightsOf(qemu.pid), rights.atMost);
    await ownStep(asRecorded(monitor, load));
    const { streamBytes, state, ...loaded } =
      load.ahead === undefined
        ? await fillFirst(monitor, qemu, load)
        : await startFilling(monitor, qemu, load, load.ahead);
    if (!request.paused && (state === 'paused' || state === 'prelaunch' || state === 'inmigrate')) {
      throw new CheckpointError(
        'RESTORE_FAILED',
        `QEMU loaded the whole checkpoint but is ${state} instead of running`,
      );
    }
    load.images.monitor = monitor;
    await load.rolledBack?.settle();
    letGo = loaded.letGo;
    return { streamBytes, running: state === 'running' };
  } finally {
    // The page server goes on with the connection of a VM that is being filled.
    if (letGo === undefined) await monitor?.close();
    else monitor?.leave();
    letGo?.();
  }
}

/** Failures of a lazy start that are QEMU's end, seen from here. */
const OF_QEMU: ReadonlySet<string> = new Set([
  'VM_GONE',
  'RESTORE_FAILED',
  'QMP_COMMAND',
  'QMP_TIMEOUT',
  'INTERRUPTED',
]);

interface Loaded {
  readonly streamBytes: number;
  /** Of the VM, as QEMU calls it. */
  readonly state: string;
  /** Of a VM that is being filled: called when its monitor was left. */
  readonly letGo?: () => void;
}

async function fillFirst(monitor: QmpClient, qemu: RestoredQemu, load: Load): Promise<Loaded> {
  const { source, sections, request, stoodIn } = load;
  const { signal, onProgress } = request;
  const streamBytes = await sendStream(monitor, {
    ...{ source, sections, options: stoodIn.options, beforeDeviceState: () => rollBack(load) },
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress }),
  });
  const incoming = { monitor, hasEnded: () => qemu.exitText, signal };
  return { streamBytes, state: await incomingCompleted(incoming) };
}

/** @throws VM_UNSUPPORTED, FFI_FAILED, USAGE for a rate that is none */
function startServerAhead({ startPageServer, fillRate }: KvmRestoreRequest): ServerAhead {
  if (startPageServer === undefined)
    throw new CheckpointError('VM_UNSUPPORTED', 'no page server can be started from here');
  return new ServerAhead(startPageServer, fillRateOf(fillRate));
}

async function startFilling(
  monitor: QmpClient,
  qemu: RestoredQemu,
  load: Load,
  ahead: ServerAhead,
): Promise<Loaded> {
  const { request, start } = load;
  const started = await startLazily({
    ...{ monitor, pid: qemu.pid, qmpPath: start.qmpPath, ahead },
    beforeRun: () => rollBack(load),
    hasEnded: () => qemu.exitText,
    signal: request.signal,
  }).catch((error: unknown) => {
    throw isCheckpointError(error) && !OF_QEMU.has(error.code) ? new OwnFailure(error) : error;
  });
  return { streamBytes: 0, ...started };
}

async function rollBack(load: Load): Promise<void> {
  const { drivers, request, source } = load;
  load.rolledBack = await ownStep(drivers.rollBack(request.keepDisks ? [] : source.disks));
}

/** Kills the new QEMU. @returns the error to throw, with what QEMU wrote when the failure is QEMU's */
async function afterFailure(
  qemu: RestoredQemu,
  error: unknown,
  options: readonly QemuOption[],
  isAborted: boolean,
): Promise<unknown> {
  if (error instanceof OwnFailure || isAborted) {
    await qemu.kill();
    return error instanceof OwnFailure ? error.reason : error;
  }
  // Most failures are QEMU's exit seen from the socket; its last words take a moment more.
  await qemu.waitForExit(EXIT_WAIT_MS);
  const exitText = qemu.exitText;
  await qemu.kill();
  const tail = withoutOptionValues(await qemu.logTail(), options);
  const code = IN_USE.test(tail) ? 'RESTORE_TARGET_BUSY' : 'RESTORE_FAILED';
  const reason =
    exitText ?? (isCheckpointError(error, 'RESTORE_FAILED') ? error.message : describeError(error));
  const said = tail === '' ? '' : `; it wrote:\n${tail}`;
  return new CheckpointError(code, `the new QEMU did not come up: ${reason}${said}`, {
    cause: error,
    ...(code === 'RESTORE_TARGET_BUSY'
      ? { hint: 'something of the recorded VM is in use: stop that VM, or change it with --set-arg' }
      : {}),
  });
}

const IN_USE = /Failed to get ".*" lock|another process using the image|Address already in use/i;
