/**
 * Runs in the page server: plays the source of a postcopy migration towards a QEMU, from the first byte or in the place of
 * a server that has ended. Loaded by its URL (`src/restore/lazy/page-server-main.ts`).
 */

import { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError, describeError, isCheckpointError } from '../../../../src/errors.js';
import type { PageServing } from '../../../../src/hypervisor/page-serving.js';
import { opening, pagesStart, reopening, resuming, runPackage } from '../../../qemu/postcopy/commands.js';
import { Destination } from '../../../qemu/postcopy/destination.js';
import { faultStep } from '../../../qemu/postcopy/fault-steps.js';
import { PageFeed } from '../../../qemu/postcopy/page-feed.js';
import { SentPages } from '../../../qemu/postcopy/sent-pages.js';
import type { QmpClient } from '../../../qemu/qmp-client.js';
import { asObject, asText } from '../../../qemu/qmp-json.js';
import { deviceSections } from '../../../qemu/stream/device-state.js';
import { readFilledVm } from './filled-vm.js';
import { borrow, checkParked, unpark } from './parked-monitor.js';
import { connectAgain } from './take-over.js';

/** Between the last message before RUN and RUN itself, when nobody is left who could say that the VM runs. */
const RUN_GRACE_MS = 3000;
const COMPLETION_LIMIT_MS = 60_000;
const POLL_MS = 10;

/**
 * Resolves when the VM has all of its memory and its monitor is free again.
 * @throws INTERRUPTED when the caller went away before anything was sent; VM_GONE when QEMU has ended or the connection is
 *   lost; VM_PERMISSION, VM_UNSUPPORTED, STREAM_MALFORMED, RESTORE_FAILED
 */
export async function servePages(serving: PageServing): Promise<void> {
  const vm = readFilledVm(serving.args);
  if (serving.stream === undefined) {
    const monitor = await borrow(serving.vm.pid, vm.monitorInode, vm.qmpPath);
    const socket = await connectAgain(monitor, serving.vm.pid, vm.qmpPath);
    monitor.leave();
    if (socket !== undefined) await goOn(serving, socket);
  } else {
    // Whoever takes over will need it, so it is known before anything is sent that it is to be had.
    await checkParked(serving.vm.pid, vm.monitorInode, vm.qmpPath);
    await begin(serving, serving.stream);
  }
  faultStep();
  await finish(await borrow(serving.vm.pid, vm.monitorInode, vm.qmpPath));
}

async function begin(serving: PageServing, descriptor: number): Promise<void> {
  const { source } = serving;
  const content = runPackage(deviceSections(await source.deviceState()));
  serving.report({ event: 'ready' });
  if (!(await serving.told('go'))) {
    throw new CheckpointError('INTERRUPTED', 'whoever restores has ended before anything was sent');
  }
  const socket = new Socket({ fd: descriptor, readable: true, writable: true });
  const { destination, feed } = feeding(serving, socket, new SentPages(source.layout));
  try {
    destination.write(opening(source.machineType, source.layout));
    destination.write(Buffer.concat([content, pagesStart()]));
    const running = destination.started().then(async () => {
      serving.report({ event: 'started' });
      if (!(await serving.told('running'))) await delay(RUN_GRACE_MS);
    });
    await filled(destination, feed, running);
  } finally {
    destination.close();
  }
}

async function goOn(serving: PageServing, socket: Socket): Promise<void> {
  const { source } = serving;
  const sent = new SentPages(source.layout);
  // Requests may come before it is known what has arrived, so they are kept.
  const early: [number, number][] = [];
  let ask = (firstPage: number, pageCount: number): void => void early.push([firstPage, pageCount]);
  const destination = new Destination(socket, source.layout, (...pages) => ask(...pages));
  try {
    destination.write(reopening(source.layout));
    for (const [region, bitmap] of await destination.received(source.layout.regions.length))
      sent.addReceived(region, bitmap);
    const feed = feedTo(serving, destination, sent);
    ask = (...pages) => feed.ask(...pages);
    for (const pages of early) feed.ask(...pages);
    destination.write(resuming());
    await destination.resumed();
    destination.write(pagesStart());
    await filled(destination, feed, Promise.resolve());
  } finally {
    destination.close();
  }
}

function feeding(
  serving: PageServing,
  socket: Socket,
  sent: SentPages,
): { readonly destination: Destination; readonly feed: PageFeed } {
  let feed: PageFeed | undefined = undefined;
  const destination: Destination = new Destination(socket, serving.source.layout, (...pages) =>
    feed?.ask(...pages),
  );
  feed = feedTo(serving, destination, sent);
  return { destination, feed };
}

function feedTo(
  { source, bytesPerSecond, report }: PageServing,
  destination: Destination,
  sent: SentPages,
): PageFeed {
  return new PageFeed({ source, destination, sent, bytesPerSecond, report });
}

/** @param running the VM runs on its device state: an end before that would leave it without the rest */
async function filled(destination: Destination, feed: PageFeed, running: Promise<void>): Promise<void> {
  const answering = feed.answer();
  const pushed = Promise.all([feed.push(), running]);
  await Promise.race([pushed, answering, destination.lost()]);
  faultStep();
  destination.write(feed.end());
  const error = await destination.shut();
  if (error === 0) return;
  throw new CheckpointError(
    'RESTORE_FAILED',
    `QEMU could not take all memory (error ${error} of its return path)`,
  );
}

/** The capability would stay for migrations of this VM to other hosts. */
async function finish(monitor: QmpClient): Promise<void> {
  const untilMs = Date.now() + COMPLETION_LIMIT_MS;
  let status = '';
  while (status !== 'completed' && Date.now() < untilMs) {
    status = asText(asObject(await monitor.execute('query-migrate')).status);
    if (status === 'failed') break;
    if (status !== 'completed') await delay(POLL_MS);
  }
  if (status !== 'completed')
    throw new CheckpointError('RESTORE_FAILED', `QEMU has all pages, but its migration is ${status}`);
  try {
    await setPostcopy(monitor, false);
  } catch (error) {
    if (!isCheckpointError(error, 'QMP_COMMAND')) throw error;
    process.emitWarning(`postcopy stays on for migrations of this VM: ${describeError(error)}`);
  }
  await unpark(monitor);
}

export async function setPostcopy(monitor: QmpClient, state: boolean): Promise<void> {
  await monitor.execute('migrate-set-capabilities', {
    capabilities: [{ capability: 'postcopy-ram', state }],
  });
}
