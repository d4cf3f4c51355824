/** Bringing a VM back, and giving a checkpoint to other tools: the hypervisor that it came from does the work. */

import { createWriteStream } from 'node:fs';
import { rm, stat } from 'node:fs/promises';
import { finished } from 'node:stream/promises';

import { CheckpointError, systemErrorCode } from '../errors.js';
import type { HypervisorRegistry, RestoreRequest, RestoreResult } from '../hypervisor/hypervisor.js';
import type { Manifest } from '../repository/manifest.js';
import type { Repository } from '../repository/repository.js';

export interface RestoreOptions {
  readonly repository: Repository;
  readonly hypervisors: HypervisorRegistry;
  readonly manifest: Manifest;
}

/** @throws REPO_DAMAGED before anything runs from damaged data, RESTORE_TARGET_BUSY, RESTORE_FAILED, VM_UNSUPPORTED */
export function restoreCheckpoint(options: RestoreOptions, request: RestoreRequest): Promise<RestoreResult> {
  const source = options.repository.reader(options.manifest);
  return options.hypervisors.byName(source.hypervisor).restore(source, request);
}

/**
 * Writes a checkpoint to a new file, 0600: it holds guest memory. A failed export leaves no file.
 * @returns bytes written
 * @throws EXPORT_EXISTS, USAGE for a format this hypervisor does not have, REPO_DAMAGED, STORAGE_FULL
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
  if (await exists(request.path)) {
    throw new CheckpointError('EXPORT_EXISTS', `${request.path} exists already`, {
      hint: 'name a file that does not exist',
    });
  }
  const sink = createWriteStream(request.path, { flags: 'wx', mode: 0o600 });
  try {
    const bytes = await hypervisor.exportTo(source, request.format, sink, request.signal);
    sink.end();
    await finished(sink);
    return bytes;
  } catch (error) {
    sink.destroy();
    await rm(request.path, { force: true });
    if (systemErrorCode(error) === 'ENOSPC') {
      throw new CheckpointError('STORAGE_FULL', `no space left for ${request.path}`, { cause: error });
    }
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch {
    return false;
  }
}
