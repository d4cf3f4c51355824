/** One child: from its folder to a QEMU that has all of its state and has not run yet. */

import { rm } from 'node:fs/promises';
import { join } from 'node:path';

import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import { processStartTime } from '../../../src/host/process-identity.js';
import { removeForkNote, writeForkNote } from '../../../src/host/fork-note.js';
import type { ForkedDisk } from '../../../src/hypervisor/disk-driver.js';
import type { ForkedVm, ForkRequest } from '../../../src/hypervisor/fork.js';
import { formatCommandLine } from '../../disks/qcow2/command-line.js';
import type { QmpClient } from '../../qemu/qmp-client.js';
import { asObject, asText } from '../../qemu/qmp-json.js';
import { pushStream } from '../../qemu/stream/push.js';
import { rightsOf } from '../inspect/process-rights.js';
import { asRecorded } from '../restore/as-recorded.js';
import { incomingCompleted } from '../restore/follow.js';
import { openLog, type QemuLog } from '../restore/log-file.js';
import { RestoredQemu } from '../restore/process.js';
import { withoutOptionValues } from '../restore/redact.js';
import { openStream } from '../restore/send-stream.js';
import { withStandIns, type StoodIn } from '../restore/stand-ins.js';
import { withRights } from '../restore/start-command.js';
import { refuseMoreRights, type StartRights } from '../restore/start-rights.js';
import type { PlannedChild } from './fork-plan.js';
import { giveToQemu, makeFolder } from './own-folder.js';

/** How long a QEMU that closed the stream gets to say why and exit. */
const EXIT_WAIT_MS = 3000;

export interface ChildDeps {
  readonly request: Pick<ForkRequest, 'origin' | 'runtimeDir' | 'signal'>;
  readonly rights: StartRights;
  readonly disks: readonly ForkedDisk[];
  /** Descriptors of the template, for the new process. */
  readonly template: readonly number[];
  /** All but the template's memory. */
  readonly stream: readonly Uint8Array[];
  /** Hears of the folder once it is there. */
  readonly onFolder: (path: string) => void;
}

export class Child {
  readonly #planned: PlannedChild;
  readonly #index: number;
  readonly #deps: ChildDeps;
  #qemu: RestoredQemu | undefined;
  #log: QemuLog | undefined;
  #monitor: QmpClient | undefined;
  #vm: ForkedVm | undefined;
  #hasFolder = false;

  constructor(index: number, planned: PlannedChild, deps: ChildDeps) {
    this.#index = index;
    this.#planned = planned;
    this.#deps = deps;
  }

  /** @throws see `VmForks.start`; the caller ends it then, too */
  async start(): Promise<ForkedVm> {
    const { start, folder, name, uuid, macs, generationId } = this.#planned;
    const { request, rights } = this.#deps;
    await this.#makeFolder();
    const stoodIn = await this.#disks();
    const command = { program: start.program, argv: formatCommandLine(stoodIn.options), env: start.env };
    this.#log = await openLog(undefined, start.qmpPath);
    const qemu = await RestoredQemu.start({
      ...(await withRights(command, rights.change)),
      ...{ cwd: start.cwd, qmpPath: start.qmpPath, log: this.#log.file, inherited: this.#deps.template },
    });
    this.#qemu = qemu;
    try {
      await this.#load(qemu, stoodIn);
    } catch (error) {
      throw await this.#failure(qemu, error);
    }
    await this.#log.belongsTo(qemu.pid);
    const vm = { pid: qemu.pid, startTime: await processStartTime(qemu.pid) };
    writeForkNote(request.runtimeDir, { vm, origin: request.origin });
    const index = this.#index;
    this.#vm = { index, name, vmAddress: `qmp:${start.qmpPath}`, ...vm, folder, uuid, macs, generationId };
    return this.#vm;
  }

  /** @throws VM_GONE, QMP_COMMAND, RESTORE_FAILED */
  async run(): Promise<void> {
    await this.#monitor!.execute('cont');
    const status = asText(asObject(await this.#monitor!.execute('query-status')).status);
    if (status === 'running') return;
    throw new CheckpointError('RESTORE_FAILED', `${this.#planned.name} is ${status} instead of running`);
  }

  /** It is by itself from here on. */
  async letGo(): Promise<void> {
    await this.#monitor?.close();
    await this.#qemu?.release();
  }

  /** @throws what cannot be removed */
  async end(): Promise<void> {
    await this.#qemu?.kill();
    await this.#monitor?.close();
    await this.#qemu?.release();
    await this.#log?.drop();
    if (this.#vm !== undefined) removeForkNote(this.#deps.request.runtimeDir, this.#vm);
    if (this.#hasFolder) await rm(this.#planned.folder, { recursive: true, force: true });
  }

  async #makeFolder(): Promise<void> {
    const { folder } = this.#planned;
    makeFolder(folder, this.#deps.onFolder);
    this.#hasFolder = true;
    await giveToQemu(folder, this.#deps.rights);
  }

  async #disks(): Promise<StoodIn> {
    const { start, folder } = this.#planned;
    const standIns = this.#deps.disks.map((disk, i) => disk.standIn(join(folder, `disk${i}`)));
    const stoodIn = await withStandIns(standIns, start.options, start.cwd);
    for (const path of stoodIn.created) await giveToQemu(path, this.#deps.rights);
    return stoodIn;
  }

  async #load(qemu: RestoredQemu, stoodIn: StoodIn): Promise<void> {
    const { request, rights, stream } = this.#deps;
    const { signal } = request;
    const monitor = await qemu.connect(signal);
    this.#monitor = monitor;
    if (rights.atMost !== undefined) refuseMoreRights(await rightsOf(qemu.pid), rights.atMost);
    await asRecorded(monitor, { start: this.#planned.start, stoodIn, request: {} });
    const socket = await openStream(monitor);
    try {
      await pushStream(inOrder(stream), socket, signal);
    } finally {
      socket.destroy();
    }
    const state = await incomingCompleted({ monitor, hasEnded: () => qemu.exitText, signal });
    if (state === 'paused' || state === 'prelaunch') return;
    throw new CheckpointError('RESTORE_FAILED', `it loaded its state and is ${state} instead of paused`);
  }

  /** @returns what QEMU has written, too, when the failure is QEMU's */
  async #failure(qemu: RestoredQemu, error: unknown): Promise<unknown> {
    const isQemus = !isCheckpointError(error) || OF_QEMU.has(error.code);
    if (this.#deps.request.signal?.aborted === true || !isQemus) return error;
    await qemu.waitForExit(EXIT_WAIT_MS);
    const reason = qemu.exitText ?? describeError(error);
    const tail = withoutOptionValues(await qemu.logTail(), this.#planned.start.options);
    const said = tail === '' ? '' : `; it wrote:\n${tail}`;
    const text = `the QEMU of ${this.#planned.name} did not come up: ${reason}${said}`;
    return new CheckpointError('RESTORE_FAILED', text, { cause: error });
  }
}

const OF_QEMU: ReadonlySet<string> = new Set(['VM_GONE', 'RESTORE_FAILED', 'QMP_COMMAND', 'QMP_TIMEOUT']);

// eslint-disable-next-line @typescript-eslint/require-await -- what takes it is asynchronous
async function* inOrder(parts: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* parts;
}
