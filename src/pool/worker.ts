/**
 * Worker thread entry: one `PageShare`, driven by messages. Errors travel as JSON, since structured clone
 * drops class and code.
 */

import { workerData } from 'node:worker_threads';

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
    share ??= await PageShare.open(workerData as ShareSettings);
    return { result: perform(share, task) };
  } catch (error) {
    const known = isCheckpointError(error)
      ? error
      : new CheckpointError('WORKER_FAILED', `${task.operation}: ${describeError(error)}`, { cause: error });
    return { error: known.toJSON() };
  }
}

/** The one place that knows both the names and the types of the operations. */
function perform(to: PageShare, { operation, argument }: WorkerTask): unknown {
  switch (operation) {
    case 'capture':
      return to.capture(argument as PageRuns);
    case 'seal':
      return to.seal();
    case 'missing':
      return to.missing(argument as MissingRequest);
    case 'encode':
      return to.encode(argument as EncodeRequest);
    case 'reserve':
      to.reserve(argument as ReserveRequest);
      return null;
    case 'reset':
      to.reset();
      return null;
    case 'forget':
      to.forget();
      return null;
  }
}
