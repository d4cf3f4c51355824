/**
 * Looks after a page server: starts it, hands on what the caller tells it, and starts another one when it is killed while
 * a VM is being filled. It holds no checkpoint and no connection, so that it is small and has little that could fail.
 *
 *     argv, stdin, stdout, 3    as of `page-server-main.ts`, and `lost` when a server was killed
 *
 * A server that is killed before the caller has said `running` is not replaced until it does, or is gone: as long as the
 * VM is the caller's, the caller ends it.
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync } from 'node:fs';
import type { Writable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { readOrder, STREAM_DESCRIPTOR, type ServerOrder } from './server-order.js';

const SERVER = fileURLToPath(new URL('page-server-main.js', import.meta.url));
/** A server that is killed so often is killed by something that does not go away. */
const MOST_SERVERS = 100;
const RETRY_MS = 200;

let words = '';
let input: Writable | undefined;
let isCallerGone = false;
let wake: () => void = () => undefined;

process.stdin.setEncoding('utf8');
process.stdin.on('data', (text: string) => {
  words += text;
  input?.write(text);
  wake();
});
for (const event of ['end', 'close', 'error'] as const) {
  process.stdin.once(event, () => {
    isCallerGone = true;
    input?.end();
    wake();
  });
}

/** @returns true when it ended by itself, or was told to (SIGTERM) */
async function serverEnds(order: ServerOrder, isFirst: boolean): Promise<boolean> {
  const { CAIRN_FILL_FAULT_STEP: step, ...env } = process.env;
  const child = spawn(process.execPath, [SERVER, JSON.stringify(order)], {
    stdio: ['pipe', 'inherit', 'ignore', order.hasStream ? STREAM_DESCRIPTOR : 'ignore'],
    env: isFirst && step !== undefined ? { ...env, CAIRN_FILL_FAULT_STEP: step } : env,
  });
  // The VM is to notice when the server ends.
  if (order.hasStream) closeSync(STREAM_DESCRIPTOR);
  input = child.stdin!;
  input.on('error', () => undefined);
  input.write(words);
  if (isCallerGone) input.end();
  const [, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
  input = undefined;
  return signal === null || signal === 'SIGTERM';
}

async function mayReplace(): Promise<void> {
  while (!words.split('\n').includes('running') && !isCallerGone)
    await new Promise<void>((resolve) => (wake = resolve));
}

for (const signal of ['SIGINT', 'SIGHUP', 'SIGQUIT'] as const) process.on(signal, () => undefined);
process.stdout.on('error', () => undefined);
let order = readOrder(process.argv);
for (let count = 0; count < MOST_SERVERS; count++) {
  if (await serverEnds(order, count === 0)) break;
  process.stdout.write('{"event":"lost"}\n');
  if (order.hasStream) await mayReplace();
  order = { ...order, hasStream: false };
  await delay(RETRY_MS);
}
process.exit();
