/** Thread entry: reads the streams it is told of, one after the other. */

import { parentPort, workerData } from 'node:worker_threads';

import { CheckpointError, describeError, isCheckpointError } from '../../../../src/errors.js';
import { receiveStream, socketChunks } from './receive.js';
import type { ReceiveReply, ReceiveRequest, ReceiverSetup } from './receiver-messages.js';

parentPort?.on('message', ({ socket }: ReceiveRequest) => {
  receiveStream(socketChunks(socket), workerData as ReceiverSetup).then(
    (received) => answer({ received }),
    (error: unknown) => {
      const known = isCheckpointError(error)
        ? error
        : new CheckpointError('WORKER_FAILED', `receiving memory: ${describeError(error)}`);
      answer({ error: known.toJSON() });
    },
  );
});

function answer(reply: ReceiveReply): void {
  parentPort?.postMessage(reply);
}
