/**
 * The process in which a target runs: first the kept inputs as they are, then inputs made of them. One line of JSON on stdout
 * for each problem, each second, and the end.
 *
 *     pool = kept inputs and seeds of the target
 *     n-th input = a member of the pool, changed by numbers that come from the seed and n
 *     an input that ends in a way not seen before joins the pool
 *
 * So an input depends on nothing but the corpus, the seed and n. Before each run the input is written to a file, for whoever
 * finds this process dead or hanging.
 */

import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';

import { seeded } from '../support/seeded.js';
import { keepInput, readCorpus } from './corpus.js';
import { installOracle, judge } from './oracle.js';
import type { FuzzTarget, OpenTarget } from './target.js';

export interface RunSettings {
  readonly target: string;
  readonly seed: number;
  /** Number of the first input to be made. */
  readonly first: number;
  /** How many inputs are made at most. */
  readonly count: number;
  /** Ends it as well; 0: no limit. */
  readonly endsAtMs: number;
  readonly workDir: string;
  /** Holds the input under way. */
  readonly currentPath: string;
  /** Where inputs that fail are kept; empty: nowhere. */
  readonly keepIn: string;
  /** Where inputs of new kinds are kept; empty: nowhere. */
  readonly growIn: string;
}

export type RunMessage =
  | { readonly kind: 'progress'; readonly executions: number; readonly pool: number; readonly at: number }
  | { readonly kind: 'problem'; readonly problem: string; readonly name: string; readonly path: string }
  | { readonly kind: 'end'; readonly executions: number; readonly pool: number; readonly at: number };

const PROGRESS_MS = 1000;
const MAX_POOL = 4000;
const MAX_POOLED_BYTES = 1 << 18;
/** Tries to make a failing input shorter. */
const MAX_SHORTENINGS = 300;

function say(message: RunMessage): void {
  writeSync(1, `${JSON.stringify(message)}\n`);
}

class InputRunner {
  readonly #settings: RunSettings;
  readonly #target: FuzzTarget;
  readonly #current: number;
  readonly #pool: Uint8Array[] = [];
  readonly #signatures = new Set<string>();
  readonly #problems = new Set<string>();
  #executions = 0;
  #at = 0;
  #saidAt = Date.now();

  constructor(settings: RunSettings, target: FuzzTarget) {
    this.#settings = settings;
    this.#target = target;
    this.#current = openSync(settings.currentPath, 'w');
  }

  async run(): Promise<void> {
    const { target, seed, first, count, endsAtMs } = this.#settings;
    const kept = readCorpus(target);
    for (const { name, bytes } of kept) await this.#try(bytes, name);
    for (const [i, bytes] of this.#target.seeds.entries()) await this.#try(bytes, `seed ${i}`);
    for (let n = first; n < first + count && (endsAtMs === 0 || Date.now() < endsAtMs); n++) {
      const random = seeded(seed * 0x9e3779b1 + n);
      const base = this.#pool[random(this.#pool.length)]!;
      this.#at = n;
      await this.#try(this.#target.mutate(base, random, this.#pool), `input ${n}`);
    }
    closeSync(this.#current);
    say({ kind: 'end', ...this.#counts() });
  }

  async #try(input: Uint8Array, name: string): Promise<void> {
    const { signature, problem } = await this.#judge(input);
    this.#executions++;
    if (problem !== undefined) await this.#report(input, problem, name);
    else if (!this.#signatures.has(signature)) this.#learn(input, signature, name);
    // Kept inputs and seeds are mutated whatever they do.
    else if (!name.startsWith('input ')) this.#pool.push(input);
    if (Date.now() - this.#saidAt < PROGRESS_MS) return;
    this.#saidAt = Date.now();
    say({ kind: 'progress', ...this.#counts() });
  }

  #learn(input: Uint8Array, signature: string, name: string): void {
    this.#signatures.add(signature);
    if (this.#pool.length >= MAX_POOL || input.length > MAX_POOLED_BYTES) return;
    this.#pool.push(input);
    if (this.#settings.growIn !== '' && name.startsWith('input '))
      keepInput(this.#settings.growIn, 'kind', input);
  }

  /** Each problem once, by the shortest input that shows it. */
  async #report(input: Uint8Array, problem: string, name: string): Promise<void> {
    const sort = sortOf(problem);
    if (this.#problems.has(sort)) return;
    this.#problems.add(sort);
    const short = await this.#shortened(input, sort);
    const { keepIn } = this.#settings;
    const path = keepIn === '' ? '' : keepInput(keepIn, 'failed', short);
    say({ kind: 'problem', problem, name, path });
  }

  async #shortened(input: Uint8Array, sort: string): Promise<Uint8Array> {
    let best = Buffer.from(input);
    let left = MAX_SHORTENINGS;
    for (let size = best.length >> 1; size > 0 && left > 0; size >>= 1) {
      for (let at = 0; at + size <= best.length && left > 0; left--) {
        const shorter = Buffer.concat([best.subarray(0, at), best.subarray(at + size)]);
        const { problem } = await this.#judge(shorter);
        if (problem !== undefined && sortOf(problem) === sort) best = shorter;
        else at += size;
      }
    }
    return best;
  }

  #judge(input: Uint8Array): ReturnType<typeof judge> {
    ftruncateSync(this.#current);
    writeSync(this.#current, input, 0, input.length, 0);
    return judge(this.#target, input);
  }

  #counts(): { readonly executions: number; readonly pool: number; readonly at: number } {
    return { executions: this.#executions, pool: this.#pool.length, at: this.#at };
  }
}

/** Sizes in it differ from input to input. */
function sortOf(problem: string): string {
  return problem
    .replace(/"[^"]*"/g, '""')
    .replace(/\b\d+\b(?! *:)/g, '0')
    .slice(0, 160);
}

const settings = JSON.parse(process.argv[2] ?? '') as RunSettings;
installOracle();
const { openTarget } = (await import(`./targets/${settings.target}.js`)) as { openTarget: OpenTarget };
const target = await openTarget(join(settings.workDir));
await new InputRunner(settings, target).run();
process.exit(0);
