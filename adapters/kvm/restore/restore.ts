/**
 * Bringing a QEMU VM back: an unmodified QEMU is started with the recorded command line and -incoming, and
 * gets a complete migration stream made from the checkpoint. It starts with the rights that it had.
 *
 *     recorded command line --edits--> new QEMU, waiting ---QMP: getfd, migrate-incoming---> socket
 *     pages, verified as they are read --> stream ----------------------------------------------^
 *
 * Invariant: a VM runs only when the whole checkpoint has been read, verified and loaded. On any failure
 * before that the new QEMU is killed, and the disks are put back to what they were; a QEMU that loses its stream (Cairn killed in the middle) ends by
 * itself.
 */

import { closeSync } from 'node:fs';
import { Socket } from 'node:net';

import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import { openSocketPair } from '../../../src/ffi/socket-pair.js';
import type { CheckpointSource, PageChunk, RestoreResult } from '../../../src/hypervisor/restore.js';
import { agentPathIn } from '../run/guest-agent/agent-path.js';
import { thawBySocket } from '../run/guest-agent/thaw-restored.js';
import type { QmpClient } from '../../qemu/qmp-client.js';
import { listPresentDisks, strayDisks } from '../inspect/present-disks.js';
import { rightsOf } from '../inspect/process-rights.js';
import { disksOfStoppedQemu, folderOf, removeStandIns, type DiskDrivers } from '../../disks/disk-drivers.js';
import { formatCommandLine, type QemuOption } from '../../disks/qcow2/command-line.js';
import { RestoredImages } from '../../disks/qcow2/restored-images.js';
import { withDisksPutBack, type RolledBack } from '../../disks/rolled-back.js';
import { incomingCompleted } from './follow.js';
import { openLog } from './log-file.js';
import { refuseNeighbours } from './neighbours.js';
import type { KvmRestoreRequest } from './options.js';
import { RestoredQemu } from './process.js';
import { withoutOptionValues } from './redact.js';
import { checkSocketsFree } from './sockets.js';
import { withRights } from './start-command.js';
import { refuseMoreRights, type StartRights } from './start-rights.js';
import { allowStart, planStart, type PlannedStart } from './start.js';
import { withStandIns, type StoodIn } from './stand-ins.js';
import { restoreIntoTarget } from './target.js';
import { deviceSections } from '../../qemu/stream/device-state.js';
import { pushStream } from '../../qemu/stream/push.js';
import { writeMigrationStream } from '../../qemu/stream/writer.js';

/** How long a QEMU that closed the stream gets to say why and exit. */
const EXIT_WAIT_MS = 3000;
/** Of the descriptor, among those that QEMU's monitor was given. */
const STREAM_NAME = 'cairn-stream';

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
  const rights = await allowStart(start, request.asRoot === true);
  const disks = request.keepDisks ? [] : source.disks;
  const images = new RestoredImages(folderOf(source.machine));
  const drivers = disksOfStoppedQemu(source.machine, images);
  await checkSocketsFree(start.options, start.cwd, start.qmpPath);
  await drivers.check(disks);
  const standIns = drivers.standIns(disks, source.checkpointId);
  const stoodIn = await withStandIns(standIns, start.options, start.cwd);
  try {
    await refuseNeighbours(stoodIn.options, start.cwd);
    const command = { program: start.program, argv: formatCommandLine(stoodIn.options), env: start.env };
    const log = await openLog(request.logPath, start.qmpPath);
    const qemu = await RestoredQemu.start({
      ...(await withRights(command, rights.change)),
      cwd: start.cwd,
      qmpPath: start.qmpPath,
      log: log.file,
    });
    const load: Load = { source, sections, request, rights, drivers, images, start, stoodIn };
    try {
      const { streamBytes, running } = await loadInto(qemu, load);
      await log.belongsTo(qemu.pid);
      const agentPath = request.guestAgent ?? agentPathIn(stoodIn.options, start.cwd);
      const frozen = await thawBySocket(source, running, agentPath);
      const notes = rights.notes.length === 0 ? {} : { notes: rights.notes };
      return { vmAddress: `qmp:${start.qmpPath}`, pid: qemu.pid, running, streamBytes, ...frozen, ...notes };
    } catch (error) {
      const failure = await afterFailure(qemu, error, stoodIn.options, request.signal?.aborted === true);
      images.monitor = undefined;
      await log.drop();
      throw await withDisksPutBack(failure, load.rolledBack, request.signal?.aborted === true);
    } finally {
      await qemu.release();
    }
  } catch (error) {
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
  /** Set once the disks are those of the checkpoint. */
  rolledBack?: RolledBack;
}

async function loadInto(
  qemu: RestoredQemu,
  load: Load,
): Promise<{ readonly streamBytes: number; readonly running: boolean }> {
  const { request, rights } = load;
  let monitor: QmpClient | undefined;
  try {
    monitor = await qemu.connect(request.signal);
    if (rights.atMost !== undefined) refuseMoreRights(await rightsOf(qemu.pid), rights.atMost);
    await ownStep(refuseOtherDisks(monitor, load));
    const streamBytes = await sendStream(await openStream(monitor), load);
    const state = await incomingCompleted(monitor, () => qemu.exitText, request.signal);
    if (!request.paused && (state === 'paused' || state === 'prelaunch' || state === 'inmigrate')) {
      throw new CheckpointError(
        'RESTORE_FAILED',
        `QEMU loaded the whole checkpoint but is ${state} instead of running`,
      );
    }
    load.images.monitor = monitor;
    await load.rolledBack?.settle();
    return { streamBytes, running: state === 'running' };
  } finally {
    await monitor?.close();
  }
}

/**
 * Looks at what the new QEMU has open before it is given anything, and before any disk is rolled back.
 * @throws RESTORE_FAILED when that is not what the checkpoint has recorded
 */
async function refuseOtherDisks(monitor: QmpClient, { start, stoodIn, request }: Load): Promise<void> {
  if (start.presentDisks === undefined) return;
  const strays = await strayDisks(start.presentDisks, await listPresentDisks(monitor), {
    cwd: start.cwd,
    instead: stoodIn.instead,
    edits: [...(request.setArgs ?? []), ...(request.dropArgs ?? [])],
  });
  if (strays.length === 0) return;
  throw new CheckpointError(
    'RESTORE_FAILED',
    `the new QEMU has other disks than the VM had at the checkpoint: ${strays.join('; ')}`,
    {
      hint: 'name what it is to have with --set-arg; cairn show prints the recorded command line',
      detail: { disks: [...strays] },
    },
  );
}

/**
 * Has QEMU read the stream from one end of a pair of sockets. It gets that end open: another user's QEMU, or
 * one in a folder of its own (-chroot), could not open a socket of Cairn's.
 */
async function openStream(monitor: QmpClient): Promise<Socket> {
  const { ours, theirs } = openSocketPair(0);
  // From here on it is closed with the socket.
  const socket = new Socket({ fd: ours, readable: false, writable: true });
  // Whoever writes listens too; between writes an error must not end the process.
  socket.on('error', () => undefined);
  try {
    await monitor.execute('getfd', { fdname: STREAM_NAME }, { passDescriptor: theirs });
    await monitor.execute('migrate-incoming', { uri: `fd:${STREAM_NAME}` });
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    closeSync(theirs);
  }
}

async function sendStream(socket: Socket, load: Load): Promise<number> {
  const { source, sections, request, drivers, stoodIn } = load;
  try {
    const stream = writeMigrationStream(
      {
        machineType: source.machineType,
        layout: source.layout,
        deviceSections: sections,
        pages: (signal) => ownPages(source, signal),
      },
      {
        omitZeroPagesOf: freshMemory(stoodIn.options),
        beforeDeviceState: async () => {
          load.rolledBack = await ownStep(drivers.rollBack(request.keepDisks ? [] : source.disks));
        },
        onProgress: (done) => request.onProgress?.(done, source.layout.sizeBytes),
        ...(request.signal === undefined ? {} : { signal: request.signal }),
      },
    );
    return await pushStream(stream, socket, request.signal);
  } finally {
    socket.destroy();
  }
}

/**
 * Main memory of a new QEMU is all zero: QEMU skips loading ROM images at reset while it waits for a stream.
 * Memory in a file keeps what the file held.
 */
function freshMemory(options: readonly QemuOption[]): (regionId: string) => boolean {
  const isFileBacked = options.some(
    ({ name, value }) => name === 'mem-path' || value?.includes('memory-backend-file') === true,
  );
  return (regionId) => regionId === 'pc.ram' && !isFileBacked;
}

/** A failure on this side of the stream. It makes QEMU end too, and must not be taken for QEMU's. */
class OwnFailure extends Error {
  readonly reason: unknown;

  constructor(reason: unknown) {
    super(describeError(reason));
    this.reason = reason;
  }
}

async function* ownPages(
  source: CheckpointSource,
  signal: AbortSignal | undefined,
): AsyncGenerator<PageChunk> {
  try {
    yield* source.pages(signal);
  } catch (error) {
    throw new OwnFailure(error);
  }
}

async function ownStep<Value>(step: Promise<Value>): Promise<Value> {
  return step.catch((error: unknown) => {
    throw new OwnFailure(error);
  });
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
