/**
 * Worker thread entry: one `PageShare`, driven by messages. Errors travel as JSON, since structured clone
 * drops class and code.
 */

import { workerData } from 'node:worker_threads';

import type { GuestReaderDescription } from '../hypervisor/guest-reader.js';
import { CheckpointError, describeError, isCheckpointError } from '../errors.js';
import type { JsonObject, PageRuns } from '../types.js';
import type {
  EncodeRequest,
  MissingRequest,
  ReserveRequest,
  ShareOperation,
  ShareSettings,
} from './messages.js';
import { PageShare } from './page-share.js';

export interface WorkerTask {
  readonly operation: ShareOperation;
  readonly argument: unknown;
}

export type WorkerReply = { readonly result: unknown } | { readonly error: JsonObject };

let share: PageShare | undefined;

export default async function serve(task: WorkerTask): Promise<WorkerReply> {
  try {
    return { result: await perform(task) };
  } catch (error) {
    const known = isCheckpointError(error)
      ? error
      : new CheckpointError('WORKER_FAILED', `${task.operation}: ${describeError(error)}`, { cause: error });
    return { error: known.toJSON() };
  }
}

/** The one place that knows both the names and the types of the operations. */
async function perform({ operation, argument }: WorkerTask): Promise<unknown> {
  if (operation === 'open') {
    share = await PageShare.open(argument as GuestReaderDescription, workerData as ShareSettings);
    return null;
  }
  if (share === undefined) throw new Error('the share is not open');
  switch (operation) {
    case 'capture':
      return share.capture(argument as PageRuns);
    case 'seal':
      return share.seal();
    case 'missing':
      return share.missing(argument as MissingRequest);
    case 'encode':
      return share.encode(argument as EncodeRequest);
    case 'reserve':
      share.reserve(argument as ReserveRequest);
      return null;
    case 'reset':
      share.reset();
      return null;
    case 'forget':
      share.forget();
      return null;
  }
}
