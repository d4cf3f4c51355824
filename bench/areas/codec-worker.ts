/** A worker that encodes its pages when told to, and reports when it began and ended. */

import { parentPort, workerData } from 'node:worker_threads';

import { CodecLoop, ENCODES_PER_MESSAGE } from './codec-loop.js';

const { before, after } = workerData as { readonly before: Uint8Array; readonly after: Uint8Array };
const loop = new CodecLoop(before, after);
loop.encode();
parentPort!.on('message', () => {
  const startedNs = process.hrtime.bigint();
  for (let i = 0; i < ENCODES_PER_MESSAGE; i++) loop.encode();
  parentPort!.postMessage({ startedNs, endedNs: process.hrtime.bigint() });
});
parentPort!.postMessage('ready');
