/**
 * Asks a store what it really does, since a store that ignores a condition answers as if it had met it: two
 * writers would both have created the same object, and one of them would not know that its own is gone.
 *
 *     20 names, two creators of each at once   -> one is told so, the other refused; what is read is the winner's
 *     one of them replaced, expecting another  -> refused; expecting what is there -> done
 *     all read and listed at once, removed, listed again
 *
 * The objects lie below "~/" of the prefix, and are removed whatever comes out.
 */

import { randomBytes } from 'node:crypto';
import { performance } from 'node:perf_hooks';

import { CheckpointError } from '../../errors.js';
import type { Answer } from './exchange.js';
import { parseListAnswer } from './list-answer.js';
import { payloadOf } from './payload.js';
import { NoAnswer, type S3Client } from './s3-client.js';
import { fromAnswer, fromNoAnswer } from './s3-errors.js';

export interface StoreReport {
  /** Of those who create the same object at once, exactly one succeeds. */
  readonly createsOnce: boolean;
  /** An object that somebody has replaced meanwhile is not replaced. */
  readonly replacesWhatWasSeen: boolean;
  /** What is written is read and listed at once, and what is removed is not. */
  readonly showsAtOnce: boolean;
  /** How much the store's clock is ahead of this host's, in ms. */
  readonly clockAheadMs: number;
  /** Median of a small upload, in ms. */
  readonly roundTripMs: number;
  /** What was found, for an operator; empty when all is well. */
  readonly problems: readonly string[];
}

const NAMES = 20;

/** @throws STORAGE_IO and the like when the store does not answer or refuses */
export async function probeStore(
  client: S3Client,
  prefix: string,
  location: string,
  signal?: AbortSignal,
): Promise<StoreReport> {
  const probe = new Probe(
    client,
    `${prefix === '' ? '' : `${prefix}/`}~/probe-${randomBytes(8).toString('hex')}/`,
    location,
    signal,
  );
  try {
    return await probe.run();
  } finally {
    await probe.cleanUp();
  }
}

/** @throws STORAGE_UNSUITABLE for a store on which two writers could harm each other */
export function mustBeSuitable(report: StoreReport, location: string): void {
  if (report.problems.length === 0) return;
  throw new CheckpointError('STORAGE_UNSUITABLE', `${location}: ${report.problems.join('; ')}`, {
    hint:
      'take a store that knows conditional writes (If-None-Match), or, where only one host at a time ever writes ' +
      'to this repository, say so in its address: ?single-writer=yes',
    detail: { location },
  });
}

class Probe {
  readonly #client: S3Client;
  readonly #root: string;
  readonly #location: string;
  readonly #signal: AbortSignal | undefined;
  readonly #timesMs: number[] = [];
  readonly #problems: string[] = [];

  constructor(client: S3Client, root: string, location: string, signal: AbortSignal | undefined) {
    this.#client = client;
    this.#root = root;
    this.#location = location;
    this.#signal = signal;
  }

  async run(): Promise<StoreReport> {
    const names = Array.from({ length: NAMES }, (_, number) => `${this.#root}${number}`);
    let clockAheadMs = 0;
    const isOnce: boolean[] = [];
    let showsAtOnce = true;
    for (const name of names) {
      const bodies = ['one', 'other'].map((who) => `${who} ${name}`);
      const startedMs = performance.now();
      const answers = await Promise.all(
        bodies.map((body) => this.#put(name, body, { 'if-none-match': '*' }, [412, 409, 501])),
      );
      this.#timesMs.push(performance.now() - startedMs);
      const winners = answers.flatMap(({ status }, at) => (status < 300 ? [bodies[at]!] : []));
      const read = await this.#send('GET', name);
      isOnce.push(winners.length === 1 && read.body.toString() === winners[0]);
      showsAtOnce &&= read.status === 200;
      const storeMs = Date.parse(answers[0]!.headers.date ?? '');
      if (!Number.isNaN(storeMs)) clockAheadMs = storeMs - Date.now();
    }
    const createsOnce = isOnce.every(Boolean);
    const [first] = names;
    const there = await this.#send('HEAD', first!);
    const wrong = await this.#put(
      first!,
      'third',
      { 'if-match': '"0123456789abcdef0123456789abcdef"' },
      [412, 409, 501],
    );
    const replacesWhatWasSeen =
      wrong.status === 412 && (await this.#replaces(first!, there.headers.etag ?? ''));
    showsAtOnce &&= (await this.#listed()) === NAMES;
    await this.#removeAll();
    showsAtOnce &&= (await this.#listed()) === 0;
    if (!createsOnce)
      this.#problems.push(
        `of ${NAMES} objects that two created at once, ${isOnce.filter((is) => !is).length} did not have exactly one creator`,
      );
    if (!replacesWhatWasSeen) this.#problems.push('it replaces an object that is another one than was said');
    if (!showsAtOnce) this.#problems.push('it does not read and list at once what was written or removed');
    const roundTripMs = this.#timesMs.sort((a, b) => a - b)[NAMES / 2]!;
    return {
      ...{ createsOnce, replacesWhatWasSeen, showsAtOnce, clockAheadMs: Math.round(clockAheadMs) },
      ...{ roundTripMs: Math.round(roundTripMs), problems: this.#problems },
    };
  }

  /** With quotes around the ETag, or, for Ceph before 17, without. */
  async #replaces(name: string, etag: string): Promise<boolean> {
    for (const expected of [etag, etag.replaceAll('"', '')])
      if ((await this.#put(name, 'fourth', { 'if-match': expected }, [412, 409, 501])).status < 300)
        return true;
    return false;
  }

  /** Best effort, also after a failure. */
  async cleanUp(): Promise<void> {
    await this.#removeAll().catch(() => undefined);
  }

  async #removeAll(): Promise<void> {
    const names = Array.from({ length: NAMES }, (_, number) => `${this.#root}${number}`);
    await Promise.all(names.map((name) => this.#send('DELETE', name)));
  }

  async #listed(): Promise<number> {
    let count = 0;
    let next: string | undefined;
    do {
      const more: Record<string, string> = next === undefined ? {} : { 'continuation-token': next };
      const query = { 'list-type': '2', prefix: this.#root, ...more };
      const answer = await this.#send('GET', '', { query });
      const page = parseListAnswer(answer.body.toString('utf8'));
      count += page.objects.length;
      next = page.next;
    } while (next !== undefined);
    return count;
  }

  #put(
    path: string,
    text: string,
    headers: Record<string, string>,
    allowed: readonly number[],
  ): Promise<Answer> {
    const payload = payloadOf(new Uint8Array(Buffer.from(text)));
    return this.#send('PUT', path, { payload, headers }, allowed);
  }

  async #send(
    method: 'GET' | 'HEAD' | 'PUT' | 'DELETE',
    path: string,
    more: Partial<Parameters<S3Client['send']>[0]> = {},
    allowed: readonly number[] = [404],
  ): Promise<Answer> {
    let answer: Answer;
    try {
      answer = await this.#client.send({ ...more, method, path, signal: this.#signal });
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      throw fromNoAnswer('reading', '', this.#location, error, false);
    }
    const isAllowed = answer.status < 300 || allowed.includes(answer.status);
    if (isAllowed && !answer.body.includes('NoSuchBucket')) return answer;
    throw fromAnswer(method === 'PUT' ? 'writing' : 'reading', '', this.#location, answer);
  }
}
