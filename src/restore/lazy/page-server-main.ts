/**
 * The page server (see `hypervisor/page-server.ts`). It opens the repository to read, and lets the adapter bring pages to
 * the VM.
 *
 *     argv    a `ServerOrder`
 *     stdin   which VM it fills, then words, a line each (`server-order.ts`, `PageServerWord`); end of file when the caller is gone
 *     stdout  events, a line of JSON each (`PageServerEvent`), and first how many pages there are; nobody may read them
 *     3       the connection to the VM
 *
 * The note in the runtime folder is written before the VM may run, and goes when all of its memory is there.
 */

import { once } from 'node:events';

import { CheckpointError, describeError, isCheckpointError } from '../../errors.js';
import { keepOutOfCoreDumps } from '../../ffi/core-dumps.js';
import { removeFillingNote, writeFillingNote, type FillingNote } from '../../host/filling-note.js';
import { ownIdentity } from '../../host/process-identity.js';
import type { PageServerEvent, PageServerWord, ServedVm } from '../../hypervisor/page-server.js';
import type { PageServingModule } from '../../hypervisor/page-serving.js';
import { Repository } from '../../repository/repository.js';
import { openStorage } from '../../storage/open.js';
import { pagedSource } from './paged-source.js';
import { readOrder, readVmLine, STREAM_DESCRIPTOR, type ServerOrder } from './server-order.js';

/** Between two lines of progress, and two notes. */
const PROGRESS_MS = 200;
/** Of what a caller that stands still has not read: no progress is told to it beyond that. */
const MOST_UNREAD_BYTES = 64 * 1024;

async function serve(order: ServerOrder): Promise<void> {
  const lines = new Lines();
  const repository = await Repository.open(await openStorage(order.repository));
  const manifest = await repository.find(order.checkpointId);
  const source = await pagedSource(repository.reader(manifest), manifest);
  say({ event: 'opened', totalPages: source.storedPages });
  const [{ servePages }, served] = await Promise.all([
    import(order.modulePath) as Promise<PageServingModule>,
    lines.vm(),
  ]);
  const { vm, vmAddress, args } = served;
  let note: FillingNote = {
    ...{ state: order.hasStream ? 'starting' : 'filling', args, damage: {}, isAwaited: false },
    ...{ vmAddress, vmName: order.vmName, vm },
    ...{ repository: order.repository, checkpointId: manifest.id, bytesPerSecond: order.bytesPerSecond },
    ...{ server: ownIdentity(), totalPages: source.storedPages, donePages: 0 },
  };
  const keep = (change: Partial<FillingNote>): void => {
    note = { ...note, ...change };
    writeFillingNote(order.runtimeDir, note);
  };
  if (!order.hasStream) keep({});
  let saidAtMs = 0;
  await servePages({
    ...{ source, vm, args, bytesPerSecond: order.bytesPerSecond },
    ...(order.hasStream ? { stream: STREAM_DESCRIPTOR } : {}),
    told: async (word) => {
      const isSaid = await lines.said(word);
      if (isSaid && word === 'go') keep({});
      if (word === 'running') keep({ state: 'filling' });
      return isSaid;
    },
    report: (event) => {
      if (event.event === 'progress') {
        const nowMs = Date.now();
        if (nowMs - saidAtMs < PROGRESS_MS) return;
        saidAtMs = nowMs;
        keep({ donePages: event.donePages });
        if (process.stdout.writableLength > MOST_UNREAD_BYTES) return;
      }
      if (event.event === 'damaged')
        keep({ state: 'damaged', damage: event.error, isAwaited: event.isAwaited });
      say(event);
    },
  });
  removeFillingNote(order.runtimeDir, vm);
  say({ event: 'progress', donePages: source.storedPages });
  say({ event: 'done' });
}

/** What the caller says, as far as it is waited for. */
class Lines {
  readonly #said: string[] = [];
  #isGone = false;
  #wake: () => void = () => undefined;

  constructor() {
    let unread = '';
    process.stdin.setEncoding('utf8');
    process.stdin.on('data', (text: string) => {
      const lines = (unread + text).split('\n');
      unread = lines.pop() ?? '';
      this.#said.push(...lines);
      this.#wake();
    });
    const gone = (): void => {
      this.#isGone = true;
      this.#wake();
    };
    for (const event of ['end', 'close', 'error'] as const) process.stdin.once(event, gone);
  }

  /** @throws INTERRUPTED when the caller went away before it said so */
  async vm(): Promise<ServedVm> {
    const vm = await this.#first(readVmLine);
    if (vm === undefined)
      throw new CheckpointError('INTERRUPTED', 'whoever restores ended before the VM was there');
    return vm;
  }

  /** @returns false when the caller went away before it was said */
  async said(word: PageServerWord): Promise<boolean> {
    return (await this.#first((line) => (line === word ? word : undefined))) !== undefined;
  }

  async #first<T>(read: (line: string) => T | undefined): Promise<T | undefined> {
    for (;;) {
      for (const line of this.#said) {
        const found = read(line);
        if (found !== undefined) return found;
      }
      if (this.#isGone) return undefined;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}

function say(event: PageServerEvent | { readonly event: 'opened'; readonly totalPages: number }): void {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

keepOutOfCoreDumps();
// Signals meant for the caller's process group, and an output that nobody reads any more.
for (const signal of ['SIGINT', 'SIGHUP', 'SIGQUIT'] as const) process.on(signal, () => undefined);
process.stdout.on('error', () => undefined);
try {
  await serve(readOrder(process.argv));
} catch (error) {
  const known = isCheckpointError(error)
    ? error
    : new CheckpointError('UNEXPECTED', describeError(error), { cause: error });
  say({ event: 'failed', error: known.toJSON() });
  process.exitCode = 1;
}
if (process.stdout.writableLength > 0) await once(process.stdout, 'drain').catch(() => undefined);
process.exit();
