/** Thread entry of `SpanFinder`: sleeps until it is asked, looks, answers. */

import { workerData } from 'node:worker_threads';

import { writtenSpans } from '../../memory/pagemap.js';
import { CONTROL, MAX_SPANS, STATE, type FinderMemory } from './span-finder.js';

const { control, question, spans } = workerData as FinderMemory;

/** @returns how many there are */
function look(): number {
  const [pagemap = -1, start = 0, end = 0] = question;
  const found = writtenSpans(pagemap, start, end);
  const count = Math.min(found.length, MAX_SPANS);
  for (let i = 0; i < count; i++) spans.set(found[i]!, 2 * i);
  if (found.length > count) spans[2 * count - 1] = found.at(-1)![1];
  return count;
}

Atomics.compareExchange(control, CONTROL.state, STATE.starting, STATE.idle);
for (;;) {
  const state = Atomics.load(control, CONTROL.state);
  if (state === STATE.ended) break;
  if (state !== STATE.asked) {
    Atomics.wait(control, CONTROL.state, state);
    continue;
  }
  let outcome: number = STATE.done;
  try {
    control[CONTROL.spanCount] = look();
  } catch {
    // Whoever asked looks again and meets the failure itself.
    outcome = STATE.failed;
  }
  Atomics.compareExchange(control, CONTROL.state, STATE.asked, outcome);
  Atomics.notify(control, CONTROL.state);
}
