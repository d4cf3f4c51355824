/**
 * The receiver's side of `xl remus`: a save stream that does not end, but goes on with the pages that
 * changed, epoch after epoch.
 *
 * The guest stands still from the start of an epoch until its last byte is taken off the pipe, so each is
 * written aside while it is read, and nothing waits for the repository. What has come whole is claimed and
 * applied later; epochs that nobody has claimed are merged.
 */

import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setImmediate as yieldTurn } from 'node:timers/promises';

import { DirtyBitmap } from '../../../src/bitmap/dirty-bitmap.js';
import { CheckpointError } from '../../../src/errors.js';
import type {
  MemorySink,
  ReceivedMachine,
  ReceivedState,
  ReceiveRequest,
} from '../../../src/hypervisor/intake.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES, type JsonObject } from '../../../src/types.js';
import { encodeDeviceState } from '../stream/device-state.js';
import { framesOf } from '../memory/guest-memory.js';
import { configOf, kindOf, layoutFor, machineOf } from '../import.js';
import { pageOfFrame } from '../domain/physmap.js';
import { readSaveFile, type SaveHead } from '../stream/reader.js';
import { StateRecords, type StateRecord } from '../stream/records.js';
import { objectOf, textOf } from '../domain/xl.js';
import { EpochSpool } from './epoch-spool.js';
import { ballooning, MemoryWatch, type ReadDomainMemory } from './memory-watch.js';

/** Pages applied before others get their turn: reading must go on. */
const PAGES_PER_TURN = 256;

/**
 * @throws STREAM_MALFORMED, VM_UNSUPPORTED for other guests than PVH ones and for one that balloons,
 *   VM_UNREACHABLE for one of another host
 */
export async function receiveRemus(
  request: ReceiveRequest,
  readMemory?: ReadDomainMemory,
): Promise<ReceivedMachine> {
  const receiver = new RemusReceiver(request, readMemory);
  try {
    await receiver.start();
    return receiver;
  } catch (error) {
    receiver.close();
    throw error;
  }
}

/** What an epoch has besides pages. */
interface EpochState {
  readonly after: StateRecords;
  startedMs: number | undefined;
}

/** Epochs that came whole. */
interface Whole {
  readonly spool: EpochSpool;
  number: number;
  stateCount: number;
  pauseMs: number | undefined;
  after: readonly StateRecord[];
}

/** What is known of the guest with its first epoch. */
interface Machine extends Pick<ReceivedMachine, 'identity' | 'machine'> {
  readonly head: SaveHead;
  readonly before: readonly StateRecord[];
  readonly layout: MemoryLayout;
  /** Pages with memory behind them: the same ones in all epochs. */
  readonly present: DirtyBitmap;
  readonly watch: MemoryWatch;
}

class RemusReceiver implements ReceivedMachine {
  readonly trackerKind = 'remus-stream';
  readonly #request: ReceiveRequest;
  readonly #readMemory: ReadDomainMemory | undefined;
  readonly #source: AsyncIterator<Uint8Array>;
  #machine: Machine | undefined;
  #spoolCount = 0;
  #epochCount = 0;
  #arriving: EpochSpool;
  #whole: Whole | undefined;
  #claimed: Whole | undefined;
  /** Why nothing more will come; `null` for the end of the pipe. */
  #end: { readonly error: unknown } | null | undefined;
  #refusal: CheckpointError | undefined;
  #isCut = false;
  #isClosed = false;
  #wake: () => void = () => undefined;

  constructor(request: ReceiveRequest, readMemory: ReadDomainMemory | undefined) {
    this.#request = request;
    this.#readMemory = readMemory;
    this.#source = request.stream[Symbol.asyncIterator]();
    this.#arriving = this.#newSpool();
  }

  get identity(): ReceivedMachine['identity'] {
    return this.#known().identity;
  }

  get machine(): JsonObject {
    return this.#known().machine;
  }

  get layout(): MemoryLayout {
    return this.#known().layout;
  }

  /** Until the first epoch is whole, and the guest one that can be taken. */
  async start(): Promise<void> {
    void this.#read()
      .then(
        () => (this.#end = null),
        (error: unknown) => (this.#end = this.#isCut ? null : { error }),
      )
      .then(() => this.#wake());
    if (await this.nextState()) {
      await this.#check();
      return;
    }
    throw new CheckpointError(
      'STREAM_MALFORMED',
      'the stream ended before the first state of the guest was whole',
      {
        hint: 'what xl remus said tells why; cairn receive is to be started by it (docs/xen.md)',
      },
    );
  }

  async nextState(): Promise<boolean> {
    for (;;) {
      if (this.#whole !== undefined || this.#refusal !== undefined) return true;
      if (this.#end === null) return false;
      if (this.#end !== undefined) throw this.#end.error;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  async claim(): Promise<ReceivedState> {
    if (this.#refusal !== undefined) throw this.#refusal;
    const whole = this.#whole;
    this.#whole = undefined;
    if (whole !== undefined && this.#claimed !== undefined) merge(this.#claimed, whole);
    else this.#claimed ??= whole;
    const claimed = this.#claimed;
    if (claimed === undefined) throw new RangeError('no state of the guest has come');
    // The guest is looked at after the last page of the epoch has come: a change while they were made is a
    // change now, too.
    await this.#check();
    const { number, stateCount, pauseMs, spool } = claimed;
    return {
      number,
      stateCount,
      pauseMs,
      pageCount: spool.pageCount,
      apply: (memory) => this.#apply(claimed, memory),
    };
  }

  close(): void {
    this.#isClosed = true;
    // Not waited for: it comes after a read that waits for the pipe.
    this.#source.return?.().catch(() => undefined);
    for (const spool of [this.#arriving, this.#whole?.spool, this.#claimed?.spool]) spool?.close();
  }

  async #read(): Promise<void> {
    const before = new StateRecords();
    let head: SaveHead | undefined;
    let watch: MemoryWatch | undefined;
    let state = newState();
    for await (const item of readSaveFile(this.#bytes(), true)) {
      if (this.#isClosed) return;
      if (item.kind === 'head') {
        head = item.head;
        const config = configOf(head);
        refuseOtherGuests(config);
        watch = new MemoryWatch(config, this.#readMemory);
        await watch.check();
      } else if (item.kind === 'state') {
        (item.before ? before : state.after).add(item.record);
      } else if (item.kind === 'emulator') {
        throw new CheckpointError(
          'STREAM_MALFORMED',
          'the state of a device model came for a guest that has none',
        );
      } else if (item.kind === 'page') {
        state.startedMs ??= performance.now();
        this.#takePage(item.frame, item.bytes);
      } else {
        this.#machine ??= this.#firstMachine(head, watch, before.records);
        this.#complete(state);
        state = newState();
      }
    }
  }

  /** The bytes, and whether they have ended: a cut in the middle of an epoch is how remus ends. */
  async *#bytes(): AsyncGenerator<Uint8Array> {
    for (;;) {
      const next = await this.#source.next();
      if (next.done === true || this.#isClosed) break;
      yield next.value;
    }
    this.#isCut = true;
  }

  #takePage(frame: number, bytes: Uint8Array | null): void {
    const place = this.#machine === undefined ? undefined : pageOfFrame(this.#machine.layout, frame);
    const wasPresent =
      this.#machine === undefined
        ? this.#arriving.has(frame)
        : place !== undefined && this.#machine.present.has(place);
    const isFirst = this.#machine === undefined && bytes !== null;
    if (!isFirst && wasPresent !== (bytes !== null))
      this.#refusal ??= ballooning(
        `memory ${wasPresent ? 'went away' : 'came'} at frame ${frame.toString(16)}`,
      );
    // Whatever comes now is of no use; the pipe is read on so that the guest runs until the end is told.
    if (bytes !== null && this.#refusal === undefined) this.#arriving.put(frame, bytes);
  }

  #firstMachine(
    head: SaveHead | undefined,
    watch: MemoryWatch | undefined,
    before: readonly StateRecord[],
  ): Machine {
    if (head === undefined || watch === undefined || this.#arriving.pageCount === 0)
      throw new CheckpointError('STREAM_MALFORMED', 'the stream of xl remus has no memory in it');
    const config = configOf(head);
    const kind = kindOf(head, textOf(objectOf(config.c_info).type), before);
    const layout = layoutFor([...this.#arriving.frames()], config);
    const present = new DirtyBitmap(layout.pageSpan);
    for (const frame of this.#arriving.frames()) present.set(pageOfFrame(layout, frame)!);
    return { ...machineOf(head, config, kind), head, before, layout, present, watch };
  }

  #complete({ after, startedMs }: EpochState): void {
    const pageCount = this.#arriving.pageCount;
    const number = ++this.#epochCount;
    // The first one is sent while the guest runs, but for its end.
    const pauseMs = number === 1 || startedMs === undefined ? undefined : performance.now() - startedMs;
    const epoch = { spool: this.#arriving, number, stateCount: 1, pauseMs, after: after.records };
    this.#arriving = this.#newSpool();
    if (this.#whole === undefined) this.#whole = epoch;
    else merge(this.#whole, epoch);
    this.#request.onState?.(number, pageCount);
    this.#wake();
  }

  async #check(): Promise<void> {
    if (this.#refusal !== undefined) throw this.#refusal;
    const { watch, present } = this.#known();
    await watch.check(present.count());
  }

  async #apply(whole: Whole, memory: MemorySink): Promise<Uint8Array> {
    const { layout, head, before, present } = this.#known();
    const page = Buffer.alloc(PAGE_SIZE_BYTES);
    let applied = 0;
    for (const frame of whole.spool.frames()) {
      whole.spool.read(frame, page);
      memory.put(pageOfFrame(layout, frame)!, page);
      if (++applied % PAGES_PER_TURN === 0) await yieldTurn();
    }
    if (this.#claimed === whole) {
      this.#claimed = undefined;
      whole.spool.close();
    }
    return encodeDeviceState({
      guestType: head.guestType,
      presentFrames: framesOf(layout, present),
      before,
      after: whole.after,
    });
  }

  #newSpool(): EpochSpool {
    return new EpochSpool(join(this.#request.workDir, `epoch-${this.#spoolCount++}`));
  }

  #known(): Machine {
    if (this.#machine !== undefined) return this.#machine;
    throw new RangeError('no state of the guest has come');
  }
}

/** Refuses other guests before anything of them is sent. @throws VM_UNSUPPORTED */
function refuseOtherGuests(config: JsonObject): void {
  const type = textOf(objectOf(config.c_info).type);
  if (type === 'pvh') return;
  throw new CheckpointError(
    'VM_UNSUPPORTED',
    `a guest of type "${type}" is not taken from xl remus: that was not tried, PVH guests are`,
    { hint: 'cairn checkpoint xen:NAME takes HVM and PV guests' },
  );
}

function newState(): EpochState {
  return { after: new StateRecords(), startedMs: undefined };
}

/** Puts `newer` on top of `older`. */
function merge(older: Whole, newer: Whole): void {
  older.spool.absorb(newer.spool);
  newer.spool.close();
  older.number = newer.number;
  older.stateCount += newer.stateCount;
  older.pauseMs = newer.pauseMs;
  older.after = newer.after;
}
