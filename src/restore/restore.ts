/**
 * Bringing a VM back, and giving a checkpoint to other tools: the hypervisor that it came from does the work.
 */

import { open, rm, type FileHandle } from 'node:fs/promises';
import { finished } from 'node:stream/promises';

import { CheckpointError, describeError, isCheckpointError, systemErrorCode } from '../errors.js';
import { defaultRuntimeDir, openRuntimeDir } from '../host/runtime-dir.js';
import type { PageServer, PageServerOrder } from '../hypervisor/page-server.js';
import type { HypervisorRegistry } from '../hypervisor/registry.js';
import type { RestoreRequest, RestoreResult } from '../hypervisor/restore.js';
import { refuseForeignSettings, type RestoreSettings } from '../hypervisor/restore-options.js';
import type { Manifest } from '../format/manifest.js';
import type { Repository } from '../repository/repository.js';
import { disksOfStopped } from '../disks/forgotten-disks.js';
import { refuseRollbackOfNeeded } from '../disks/rollback-check.js';
import { Filling } from './lazy/filling.js';
import { StartedPageServer } from './lazy/page-server.js';
import { refuseUntrusted, type TrustQuestion } from './trust.js';

export interface RestoreOptions {
  readonly repository: Repository;
  readonly hypervisors: HypervisorRegistry;
  readonly manifest: Manifest;
  /** Asked before a checkpoint that this host did not take is restored; absent: such a one is refused. */
  readonly trust?: TrustQuestion | undefined;
}

/** Without `paused`, the VM comes back as it was found: running, or paused. */
export type RestoreCall = Omit<RestoreRequest, 'paused' | 'startPageServer'> &
  Partial<Pick<RestoreRequest, 'paused'>>;

export interface Restored extends RestoreResult {
  /** The VM is up, and its memory still comes in; follow it or let it go. */
  readonly filling?: Filling;
}

/**
 * @param settings options of the hypervisor's own, by name
 * @throws REPO_DAMAGED before anything runs from damaged data, RESTORE_TARGET_BUSY, RESTORE_FAILED,
 *   VM_UNSUPPORTED; DISK_CHANGED, RESTORE_UNTRUSTED, RESTORE_RIGHTS, RESTORE_REPLACEABLE, and USAGE for
 *   options of another hypervisor, with nothing touched
 */
export async function restoreCheckpoint(
  options: RestoreOptions,
  call: RestoreCall,
  settings: RestoreSettings = {},
): Promise<Restored> {
  const { repository, manifest, hypervisors, trust } = options;
  let server: PageServer | undefined;
  const request: RestoreRequest = {
    ...call,
    paused: call.paused ?? manifest.runState === 'paused',
    startPageServer: async (order) => (server = await startPageServer(options, order)),
  };
  const source = repository.reader(manifest);
  const hypervisor = hypervisors.byName(source.hypervisor);
  refuseForeignSettings(hypervisor, hypervisors.all, settings);
  await refuseUntrusted(manifest, await hypervisor.planRestore?.(source, request, settings), trust);
  const hasOtherDisks = Object.keys(settings).some(
    (key) => hypervisor.restoreOptions[key]?.replacesDisks === true,
  );
  const rollback = { keepDisks: request.keepDisks, hasOtherDisks, signal: request.signal };
  await refuseRollbackOfNeeded(repository, manifest, rollback, disksOfStopped(hypervisors));
  const result = await hypervisor.restore(source, request, settings);
  return server === undefined ? result : { ...result, filling: new Filling(server) };
}

async function startPageServer(
  { repository, manifest }: RestoreOptions,
  { modulePath, stream, bytesPerSecond }: PageServerOrder,
): Promise<PageServer> {
  const order = {
    ...{ modulePath, bytesPerSecond, vmName: manifest.vmName },
    ...{ repository: repository.backend.properties.location, checkpointId: manifest.id },
    ...{ runtimeDir: await openRuntimeDir(defaultRuntimeDir()), hasStream: true },
  };
  return StartedPageServer.start(order, stream);
}

/**
 * Writes a checkpoint to a new file, 0600: it holds guest memory. A failed export leaves no file.
 * @returns bytes written
 * @throws EXPORT_EXISTS, USAGE for a format this hypervisor does not have or a folder that is not there,
 *   REPO_DAMAGED, STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_IO
 */
export async function exportCheckpoint(
  options: RestoreOptions,
  request: { readonly format: string; readonly path: string; readonly signal?: AbortSignal },
): Promise<number> {
  const source = options.repository.reader(options.manifest);
  const hypervisor = options.hypervisors.byName(source.hypervisor);
  if (!hypervisor.exportFormats.includes(request.format)) {
    throw new CheckpointError('USAGE', `no export format "${request.format}" for ${hypervisor.name}`, {
      hint: `known: ${hypervisor.exportFormats.join(', ')}`,
    });
  }
  const file = await createNew(request.path);
  // Flushed before it is closed: a file system that finds out late that it is full says so then.
  const sink = file.createWriteStream({ flush: true });
  // Whoever writes listens too; what comes after that must not end the process.
  sink.on('error', () => undefined);
  try {
    const bytes = await hypervisor.exportTo(source, request.format, sink, request.signal);
    sink.end();
    await finished(sink);
    return bytes;
  } catch (error) {
    sink.destroy();
    // Ours: nobody else's could be created under that name.
    await rm(request.path, { force: true });
    throw isCheckpointError(error) ? error : exportFailure(request.path, error);
  }
}

/** Never a file that is there already. */
async function createNew(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'wx', 0o600);
  } catch (cause) {
    throw exportFailure(path, cause);
  }
}

function exportFailure(path: string, cause: unknown): unknown {
  switch (systemErrorCode(cause)) {
    case 'EEXIST':
      return new CheckpointError('EXPORT_EXISTS', `${path} exists already`, {
        cause,
        hint: 'name a file that does not exist',
      });
    case 'ENOENT':
    case 'ENOTDIR':
      return new CheckpointError('USAGE', `the folder for ${path} does not exist`, { cause });
    case 'ENOSPC':
    case 'EDQUOT':
      return new CheckpointError('STORAGE_FULL', `no space left for ${path}`, {
        cause,
        hint: 'free space or name a file on another file system',
      });
    case 'EROFS':
    case 'EACCES':
    case 'EPERM':
      return new CheckpointError('STORAGE_READ_ONLY', `${path} cannot be created here`, { cause });
    case undefined:
      return cause;
    default:
      return new CheckpointError('STORAGE_IO', `writing ${path}: ${describeError(cause)}`, { cause });
  }
}
