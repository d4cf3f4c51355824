/**
 * Bringing a domain back through libvirt: it reads a save image from a FIFO into which the checkpoint is
 * written.
 *
 *     checkpoint, verified while it is read --> image --> FIFO --> libvirt, as in `virsh restore` --> QEMU
 *
 * Invariant: as of any restore, the VM runs only when the whole checkpoint has been read. A stream that
 * breaks off has no device state, QEMU refuses it, and libvirt ends that QEMU.
 */

import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { once } from 'node:events';

import { ownIdentity } from '../../../src/host/process-identity.js';
import { defaultRuntimeDir, openRuntimeDir } from '../../../src/host/runtime-dir.js';
import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import type { CheckpointSource, RestoreResult } from '../../../src/hypervisor/restore.js';
import { disksOfStoppedQemu, folderOf, removeStandIns, type DiskDrivers } from '../../disks/disk-drivers.js';
import { RestoredImages } from '../../disks/qcow2/restored-images.js';
import { withDisksPutBack, type RolledBack } from '../../disks/rolled-back.js';
import type { DiskSnapshot } from '../../../src/hypervisor/disks.js';
import { tendGuest } from '../../kvm/run/guest-agent/restored-guest.js';
import { restoreCheckpoint as restoreOfKvm } from '../../kvm/restore/restore.js';
import { deviceSections } from '../../qemu/stream/device-state.js';
import { pushStream } from '../../qemu/stream/push.js';
import { writeMigrationStream } from '../../qemu/stream/writer.js';
import { formatDomainAddress, localUri, parseRestoreTarget, SYSTEM_URI } from '../address.js';
import { LibvirtConnection } from '../native/connection.js';
import { DomainAgent } from '../qemu/domain-agent.js';
import { LibvirtMonitor } from '../qemu/monitor.js';
import { domainProcess } from '../domain-process.js';
import { editDomain } from '../xml/description-edits.js';
import { hasFileMemory, identityIn, type DomainIdentity } from '../xml/domain-xml.js';
import { LibvirtDomain } from '../domain.js';
import { makeFifo, openForReader } from './fifo.js';
import { libvirt } from '../native/native.js';
import { editsIn, type LibvirtRestoreRequest } from './options.js';
import { followInDefinition, overlayDisks } from './restore-disks.js';
import { saveImageHead } from '../save-image.js';

/** virDomainSaveRestoreFlags */
const SAVE_RUNNING = 2;
const SAVE_PAUSED = 4;

/**
 * Without a target, or with libvirt[:URI], libvirt starts the domain. Another target is a waiting QEMU, as of
 * any KVM checkpoint.
 * @throws RESTORE_TARGET_BUSY when the domain runs or its disks are in use, USAGE for edits libvirt does not
 *   take, VM_UNSUPPORTED, VM_UNREACHABLE, REPO_DAMAGED and RESTORE_FAILED with nothing left running,
 *   INTERRUPTED
 */
export async function restoreDomain(
  source: CheckpointSource,
  request: LibvirtRestoreRequest,
): Promise<RestoreResult> {
  refuseLazily(request);
  const uri = request.target === undefined ? recordedUri(source) : parseRestoreTarget(request.target);
  if (uri === undefined) return intoWaitingQemu(source, request);
  refuseOptionsOfQemu(request);
  const images = new RestoredImages(folderOf(source.machine));
  const drivers = disksOfStoppedQemu(source.machine, images);
  const { xml: edited, disks } = await editDomain(source, request, drivers);
  const identity = identityIn(edited);
  const sections = deviceSections(await source.deviceState());
  const connection = await LibvirtConnection.open(uri);
  try {
    await refuseActive(connection, identity);
    await drivers.check(disks);
    const { xml, overlays } = await overlayDisks(edited, drivers.standIns(disks, source.checkpointId));
    const work: Load = { source, disks, drivers, request, connection, xml, sections };
    let streamBytes: number;
    try {
      streamBytes = await load(work);
    } catch (error) {
      await removeStandIns(overlays.values());
      // libvirt has ended its QEMU before it says that it failed.
      throw await withDisksPutBack(error, work.rolledBack, request.signal?.aborted === true);
    }
    const domain = await LibvirtDomain.find(connection, identity.uuid);
    images.monitor = new LibvirtMonitor(domain);
    await work.rolledBack?.settle();
    await followInDefinition(domain, overlays);
    const { pid } = await domainProcess(domain);
    const vmAddress = formatDomainAddress({ uri, domain: domain.name });
    const running = (await domain.state()) === 'running';
    const tended = await tendGuest(source, running, new DomainAgent(domain), request);
    return { vmAddress, pid, running, streamBytes, ...tended };
  } catch (error) {
    if (request.signal?.aborted !== true) throw error;
    const text = `restoring ${source.checkpointId} was interrupted; nothing was left running`;
    throw new CheckpointError('INTERRUPTED', text, { cause: error });
  } finally {
    await connection.close();
  }
}

/** libvirt reads a save image to its end, and has nothing by which QEMU could ask for a page. */
function refuseLazily({ lazy }: LibvirtRestoreRequest): void {
  if (lazy !== true) return;
  throw new CheckpointError(
    'VM_UNSUPPORTED',
    'no restore with --lazy through libvirt: it gives QEMU a save image, which has no way back to ask for pages',
    { hint: 'restore it without --lazy' },
  );
}

interface Load {
  readonly source: CheckpointSource;
  readonly disks: readonly DiskSnapshot[];
  readonly drivers: DiskDrivers;
  readonly request: LibvirtRestoreRequest;
  readonly connection: LibvirtConnection;
  readonly xml: string;
  readonly sections: Uint8Array;
  /** Set once the disks are those of the checkpoint. */
  rolledBack?: RolledBack;
}

/** @returns bytes written */
async function load(work: Load): Promise<number> {
  const { request, connection } = work;
  // Named after this process, so that it is swept should this one be killed.
  const { pid, startTime } = ownIdentity();
  const runtimeDir = await openRuntimeDir(defaultRuntimeDir());
  const folder = await mkdtemp(join(runtimeDir, `restore-${pid}-${startTime}-`));
  try {
    const path = join(folder, 'image');
    await makeFifo(path);
    const flags = request.paused ? SAVE_PAUSED : SAVE_RUNNING;
    let isOver = false;
    const restored = settled(
      connection
        .withConnection('restoring the domain', libvirt().domainRestore, path, null, flags)
        .finally(() => (isOver = true)),
    );
    const sent = await settled(send(path, work, () => isOver));
    const taken = await restored;
    if (taken.ok && sent.ok) return sent.value;
    throw failure(work.source, taken.ok ? undefined : taken.error, sent.ok ? undefined : sent.error);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

type Settled<Value> =
  { readonly ok: true; readonly value: Value } | { readonly ok: false; readonly error: unknown };

/** A promise that is waited for later must not fail unheard before. */
function settled<Value>(promise: Promise<Value>): Promise<Settled<Value>> {
  return promise.then(
    (value) => ({ ok: true, value }),
    (error: unknown) => ({ ok: false, error }),
  );
}

async function send(path: string, work: Load, isOver: () => boolean): Promise<number> {
  const { source, disks, drivers, request, xml, sections } = work;
  const isInFile = hasFileMemory(xml);
  const socket = await openForReader(path, isOver, request.signal);
  if (socket === undefined) return 0;
  try {
    const stream = writeMigrationStream(
      {
        machineType: source.machineType,
        layout: source.layout,
        deviceSections: sections,
        pages: (signal) => source.pagesAsStored(signal),
      },
      {
        // Main memory of a new QEMU is all zero, unless it lies in a file that held something.
        omitZeroPagesOf: (regionId) => regionId === 'pc.ram' && !isInFile,
        beforeDeviceState: async () => {
          work.rolledBack = await drivers.rollBack(disks);
        },
        onProgress: (done) => request.onProgress?.(done, source.layout.sizeBytes),
        ...(request.signal === undefined ? {} : { signal: request.signal }),
      },
    );
    const bytes = await pushStream(image(saveImageHead(xml), stream), socket, request.signal);
    // libvirt reads to the end of the file.
    const closed = once(socket, 'close');
    socket.end();
    socket.destroySoon();
    await closed;
    return bytes;
  } finally {
    socket.destroy();
  }
}

async function* image(
  head: Uint8Array,
  stream: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, void> {
  yield head;
  yield* stream;
}

/** The cause is ours when the stream could not be made, and libvirt's when it was not taken. */
function failure(source: CheckpointSource, ofLibvirt: unknown, ofStream: unknown): unknown {
  const isOurs = isCheckpointError(ofStream) && !isCheckpointError(ofStream, 'FFI_FAILED');
  if (isOurs || ofLibvirt === undefined) return ofStream;
  const why = describeError(ofLibvirt);
  const isBusy = IN_USE.test(why);
  return new CheckpointError(
    isBusy ? 'RESTORE_TARGET_BUSY' : 'RESTORE_FAILED',
    `libvirt did not restore ${source.checkpointId}: ${why}`,
    {
      cause: ofLibvirt,
      ...(isBusy ? { hint: 'stop the domain that uses it, or restore with --new-name and --disk' } : {}),
    },
  );
}

const IN_USE =
  /already (active|exists|defined|being started)|Failed to get ".*" lock|another process using the image|resource busy/i;

async function refuseActive(connection: LibvirtConnection, { name, uuid }: DomainIdentity): Promise<void> {
  for (const key of [uuid, name]) {
    let domain: LibvirtDomain;
    try {
      domain = await LibvirtDomain.find(connection, key);
    } catch (error) {
      if (isCheckpointError(error, 'VM_ADDRESS')) continue;
      throw error;
    }
    if ((await domain.state()) === 'shutoff') continue;
    throw new CheckpointError('RESTORE_TARGET_BUSY', `the domain ${domain.name} is active`, {
      hint: `virsh destroy ${domain.name} ends it; --new-name NEW restores beside it`,
    });
  }
}

function recordedUri(source: CheckpointSource): string {
  const uri = source.machine.libvirtUri;
  return localUri(typeof uri === 'string' ? uri : SYSTEM_URI);
}

/** @throws USAGE for edits of a description that nobody starts a VM from */
function intoWaitingQemu(source: CheckpointSource, request: LibvirtRestoreRequest): Promise<RestoreResult> {
  if (editsIn(request).length === 0) return restoreOfKvm(source, request);
  throw new CheckpointError('USAGE', 'there is no domain to edit: no libvirt starts this VM', {
    hint: 'the QEMU that waits has its own command line; leave away --new-name, --new-macs, --disk, --xml-edit',
  });
}

/** @throws USAGE for options that only a QEMU that waits has a use for */
function refuseOptionsOfQemu(request: LibvirtRestoreRequest): void {
  const given = [
    ...(request.socketPath === undefined ? [] : ['--qmp']),
    ...(request.guestAgent === undefined ? [] : ['--guest-agent']),
  ];
  if (given.length === 0) return;
  throw new CheckpointError('USAGE', `${given.join(', ')} cannot be used when libvirt starts the VM`, {
    hint: 'edit the domain instead: --new-name, --new-macs, --disk, --xml-edit',
  });
}
