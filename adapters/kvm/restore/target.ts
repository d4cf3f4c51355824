/** Restoring into a QEMU that somebody else has started with -incoming, at unix:/path or tcp:host:port. */

import { createConnection, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

import { processStartTime } from '../../../src/host/process-identity.js';
import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import type { StandIn } from '../../../src/hypervisor/disk-driver.js';
import type { CheckpointSource, RestoreResult } from '../../../src/hypervisor/restore.js';
import { tendBySocket } from '../run/guest-agent/restored-guest.js';
import { peerPid } from '../../qemu/peer-process.js';
import { descriptorOf } from '../../../src/host/socket-descriptor.js';
import { QmpClient } from '../../qemu/qmp-client.js';
import { disksOfStoppedQemu, folderOf } from '../../disks/disk-drivers.js';
import { RestoredImages } from '../../disks/qcow2/restored-images.js';
import { withDisksPutBack, type RolledBack } from '../../disks/rolled-back.js';
import { incomingCompleted } from './follow.js';
import type { KvmRestoreRequest } from './options.js';
import { withRunState } from '../../qemu/stream/device-state.js';
import { pushStream } from '../../qemu/stream/push.js';
import { writeMigrationStream } from '../../qemu/stream/writer.js';

/** A monitor greets whoever connects; a QEMU that waits for a stream is silent. */
const GREETING_WAIT_MS = 200;
/** A QEMU that gives up on a stream closes it, then exits. */
const EXIT_GRACE_MS = 200;

type Address = { readonly path: string } | { readonly host: string; readonly port: number };

/**
 * Without `request.socketPath` a failure in the very last step (a device that does not take its state) shows
 * only as the end of the process, and not at all over tcp:. With it, the result is what QEMU says.
 * @throws USAGE, RESTORE_FAILED, REPO_DAMAGED; the waiting QEMU never runs then, and most versions exit
 */
export async function restoreIntoTarget(
  source: CheckpointSource,
  deviceSections: Uint8Array,
  target: string,
  request: KvmRestoreRequest,
): Promise<RestoreResult> {
  const address = parseAddress(target);
  const disks = request.keepDisks ? [] : source.disks;
  const images = new RestoredImages(folderOf(source.machine));
  const drivers = disksOfStoppedQemu(source.machine, images);
  let rolledBack: RolledBack | undefined;
  refuseStandIns(drivers.standIns(disks, source.checkpointId));
  await drivers.check(disks);
  const monitor =
    request.socketPath === undefined
      ? undefined
      : await QmpClient.connect(request.socketPath, { signal: request.signal });
  try {
    const socket = await connect(address, target);
    const receiver = await Receiver.of(socket, 'path' in address);
    try {
      await receiver.isSilent(target);
      const streamBytes = await pushStream(
        writeMigrationStream(
          {
            machineType: source.machineType,
            layout: source.layout,
            // There is no -S to keep it stopped with; QEMU takes this state over instead of starting.
            deviceSections: request.paused ? withRunState(deviceSections, 'paused') : deviceSections,
            pages: (signal) => source.pagesAsStored(signal),
          },
          {
            beforeDeviceState: async () => {
              rolledBack = await drivers.rollBack(disks);
              // From here on nobody could ask the QEMU to let go of what was kept.
              if (monitor === undefined) await rolledBack.settle();
            },
            onProgress: (done) => request.onProgress?.(done, source.layout.sizeBytes),
            ...(request.signal === undefined ? {} : { signal: request.signal }),
          },
        ),
        socket,
        request.signal,
      ).catch((error: unknown) => {
        // What is wrong on this side has a code of its own.
        throw isCheckpointError(error) || request.signal?.aborted === true ? error : notTaken(target, error);
      });
      socket.end();
      if (monitor !== undefined) {
        const state = await incomingCompleted({ monitor, hasEnded: () => undefined, signal: request.signal });
        images.monitor = monitor;
        await rolledBack?.settle();
        const vmAddress = `qmp:${request.socketPath ?? ''}`;
        const running = state === 'running';
        const tended = await tendBySocket(source, running, request.guestAgent, request);
        return { vmAddress, pid: peerPid(monitor.descriptor), running, streamBytes, ...tended };
      }
      await receiver.tookIt(target);
      const running = !request.paused;
      const tended = await tendBySocket(source, running, request.guestAgent, request);
      return { vmAddress: '', pid: receiver.pid, running, streamBytes, ...tended };
    } finally {
      socket.destroy();
    }
  } catch (error) {
    // A QEMU that runs all the same has its disks locked, and they stay.
    images.monitor = undefined;
    throw await withDisksPutBack(error, rolledBack, request.signal?.aborted === true);
  } finally {
    await monitor?.close();
  }
}

/** @throws USAGE */
export function parseAddress(target: string): Address {
  if (target.startsWith('unix:') && target.length > 'unix:'.length)
    return { path: target.slice('unix:'.length) };
  const groups = /^tcp:(?:\[(?<v6>[^\]]+)\]|(?<host>[^:]+)):(?<port>[0-9]{1,5})$/.exec(target)?.groups;
  const port = Number(groups?.port);
  const host = groups?.v6 ?? groups?.host;
  if (host !== undefined && port > 0 && port < 65536) return { host, port };
  throw new CheckpointError('USAGE', `"${target}" is not where a QEMU waits for a stream`, {
    hint: 'write unix:/path or tcp:host:port, as given to -incoming',
  });
}

function refuseStandIns(standIns: readonly StandIn[]): void {
  if (standIns.length === 0) return;
  const paths = standIns.map(({ path }) => path);
  throw new CheckpointError(
    'RESTORE_FAILED',
    `the waiting QEMU has its disks open already; the checkpoint's are ${paths.join(', ')}`,
    {
      hint: 'start the waiting QEMU on new overlays of these images and pass --keep-disks',
    },
  );
}

function connect(address: Address, target: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(address);
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
    socket.once('error', (cause) =>
      reject(
        new CheckpointError('RESTORE_FAILED', `cannot connect to ${target}: ${describeError(cause)}`, {
          cause,
          hint: 'start the QEMU with -incoming and this address first',
        }),
      ),
    );
  });
}

/** The process at the other end, as far as it can be seen. */
class Receiver {
  /** 0 when it is not on this host. */
  readonly pid: number;
  readonly #startTime: string;
  readonly #closed: Promise<Error | undefined>;
  /** Nothing comes back from a stream without a return path. */
  readonly #spoke: Promise<true>;

  private constructor(socket: Socket, pid: number, startTime: string) {
    this.pid = pid;
    this.#startTime = startTime;
    this.#closed = new Promise((resolve) => {
      socket.once('error', (error) => resolve(error));
      socket.once('close', () => resolve(undefined));
    });
    // The end of the connection shows only to a reader.
    this.#spoke = new Promise((resolve) => socket.once('data', () => resolve(true)));
    socket.resume();
  }

  /** Makes sure that no guest memory is sent to what is no waiting QEMU. @throws RESTORE_FAILED */
  async isSilent(target: string): Promise<void> {
    if (!(await Promise.race([this.#spoke, delay(GREETING_WAIT_MS, false)]))) return;
    throw new CheckpointError('RESTORE_FAILED', `${target} answers instead of waiting for a stream`, {
      hint: 'it looks like a monitor; name the address that was given to -incoming or migrate-incoming',
    });
  }

  static async of(socket: Socket, isLocal: boolean): Promise<Receiver> {
    const pid = isLocal ? peerPid(descriptorOf(socket)) : 0;
    return new Receiver(socket, pid, pid === 0 ? '' : await processStartTime(pid));
  }

  /** @throws RESTORE_FAILED */
  async tookIt(target: string): Promise<void> {
    const error = await this.#closed;
    if (error === undefined && this.pid === 0) return;
    await delay(EXIT_GRACE_MS);
    if (error === undefined && (await processStartTime(this.pid)) === this.#startTime) return;
    throw notTaken(target, error);
  }
}

function notTaken(target: string, cause: unknown): CheckpointError {
  return new CheckpointError('RESTORE_FAILED', `the QEMU at ${target} did not take the stream`, {
    ...(cause === undefined ? {} : { cause }),
    hint: 'its own output says why; it needs the same machine type, memory size and devices as the recorded VM',
  });
}
