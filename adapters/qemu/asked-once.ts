/**
 * One look at a QEMU: several parts of Cairn want the same of its monitor, such as the list of its drives. Within one
 * look each question is put once and its answer shared, which also makes the parts agree about what they saw.
 */

import type { Json } from '../../src/types.js';
import type { Monitor } from './monitor.js';

/** @param monitor what is asked of the result must be questions, which change nothing */
export function askedOnce(monitor: Monitor): Monitor {
  const answers = new Map<string, Promise<Json>>();
  return {
    execute: (command, args, options) => {
      const question = JSON.stringify([command, args ?? {}]);
      const known = answers.get(question);
      if (known !== undefined) return known;
      const answer = monitor.execute(command, args, options);
      answers.set(question, answer);
      return answer;
    },
    onEvent: (listener) => monitor.onEvent(listener),
    close: () => monitor.close(),
  };
}
