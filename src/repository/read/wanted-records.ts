/**
 * Slots of a window of pages and the record that each of them needs next, in the order in which the records
 * lie in the chain.
 */

import {
  frameKeyOfRef,
  frameOfRef,
  isRecordRef,
  packOfRef,
  type RecordRef,
} from '../../format/record-ref.js';

/** Ascending by reference, so that the records of a frame stand together, and the frames of a pack. */
export interface WantedRecords {
  readonly slots: Uint32Array;
  /** One a slot. */
  readonly refs: Float64Array;
}

/** The records [from, to) of a `WantedRecords`: all of those that lie in one frame. */
export interface FrameSpan {
  readonly key: number;
  readonly pack: number;
  readonly frame: number;
  readonly from: number;
  readonly to: number;
}

/**
 * @param refs one for each slot of the window
 * @param slots those that need a record; sorted in place
 * @throws RangeError for a slot whose reference is none to a record
 */
export function sortByRef(refs: Float64Array, slots: Uint32Array): WantedRecords {
  for (const slot of slots) {
    if (!isRecordRef(refs[slot]!)) throw new RangeError(`${refs[slot]!} is not a record reference`);
  }
  slots.sort((a, b) => refs[a]! - refs[b]!);
  return { slots, refs: Float64Array.from(slots, (slot) => refs[slot]!) };
}

/** Cuts wanted records where the next frame begins. */
export function* spansOf({ refs }: WantedRecords): Generator<FrameSpan> {
  for (let from = 0; from < refs.length;) {
    const ref = refs[from]!;
    const to = endOfStretch(refs, from, frameKeyOfRef);
    yield { key: frameKeyOfRef(ref), pack: packOfRef(ref), frame: frameOfRef(ref), from, to };
    from = to;
  }
}

/** One list for each pack, in the order of the spans. */
export function groupByPack(spans: readonly FrameSpan[]): readonly (readonly FrameSpan[])[] {
  const groups: FrameSpan[][] = [];
  for (const span of spans) {
    const last = groups.at(-1);
    if (last?.[0]!.pack === span.pack) last.push(span);
    else groups.push([span]);
  }
  return groups;
}

/**
 * Parts the slots whose record lies in the pack that most of them lie in from the others. The parts are read
 * side by side: one of them, commonly the base, is many frames that are read one after the other, and the
 * other a few that lead from one to the next.
 */
export function splitLargestPack(wanted: WantedRecords): readonly WantedRecords[] {
  const { slots, refs } = wanted;
  let largest = [0, 0] as readonly [number, number];
  for (let from = 0; from < refs.length;) {
    const to = endOfStretch(refs, from, packOfRef);
    if (to - from > largest[1] - largest[0]) largest = [from, to];
    from = to;
  }
  const [from, to] = largest;
  if (to - from === refs.length) return [wanted];
  const others = [...slots.keys()].filter((i) => i < from || i >= to);
  return [
    {
      slots: Uint32Array.from(others, (i) => slots[i]!),
      refs: Float64Array.from(others, (i) => refs[i]!),
    },
    { slots: slots.subarray(from, to), refs: refs.subarray(from, to) },
  ];
}

/** End of the stretch of references, from `from` on, that have the same `placeOf`. */
function endOfStretch(refs: Float64Array, from: number, placeOf: (ref: RecordRef) => number): number {
  const place = placeOf(refs[from]!);
  let to = from + 1;
  while (to < refs.length && placeOf(refs[to]!) === place) to++;
  return to;
}
