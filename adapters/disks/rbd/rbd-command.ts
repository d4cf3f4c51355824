/**
 * Questions to a Ceph cluster and commands to it, by the program `rbd` (rbd(8)) of ceph-common. A process of
 * its own, and not librbd inside of this one or QEMU: one that hangs can be killed.
 */

import { failureOf, type RunTool, type ToolResult } from '../run-tool.js';
import { nameOfImage, type RbdLocation } from './image-names.js';

/** A healthy cluster answers in some 100 ms; while one of its daemons fails, in seconds. */
const QUESTION_LIMIT_MS = 15_000;
/** librados and the monitors log to stderr as well: `2026-11-23T19:53:59.541+0000 7fe3588 -1 auth: ...` */
const LOG_LINE = /^\d{4}-\d\d-\d\dT[\d:.+-]+ [0-9a-f]+ /;

/** `isStalled`: there was no answer within the limit. */
export type Answer<Value> =
  { readonly value: Value } | { readonly whyNot: string; readonly isStalled: boolean };

export function rbd(
  run: RunTool,
  image: RbdLocation,
  command: readonly string[],
  limitMs: number,
): Promise<ToolResult> {
  const where = [
    ...(image.conf === '' ? [] : [`--conf=${image.conf}`]),
    ...(image.monitors === '' ? [] : ['-m', image.monitors]),
    ...(image.user === '' ? [] : ['--id', image.user]),
  ];
  const what = [
    `--pool=${image.pool}`,
    ...(image.namespace === '' ? [] : [`--namespace=${image.namespace}`]),
    `--image=${image.name}`,
  ];
  return run('rbd', [...where, ...command, ...what], limitMs);
}

/** What went wrong, with the image and the step; empty when nothing did. */
export function rbdFailure(image: RbdLocation, step: string, result: ToolResult): string {
  const why = failureOf(`rbd ${step}`, result);
  if (why === '') return '';
  const said = why.split('; ').filter((line) => !LOG_LINE.test(line));
  return `${nameOfImage(image)}: ${said.length === 0 ? why : said.join('; ')}`;
}

export interface ImageFacts {
  /** Id of this image alone, whatever its name; another image of that name has another one. */
  readonly id: string;
}

export function imageFacts(run: RunTool, image: RbdLocation): Promise<Answer<ImageFacts>> {
  return ask(run, image, ['info'], (reply) => ({ id: (reply as { id?: string }).id ?? '' }));
}

export function snapshotNames(run: RunTool, image: RbdLocation): Promise<Answer<readonly string[]>> {
  return ask(run, image, ['snap', 'ls'], (reply) =>
    (reply as readonly { name?: string }[]).map(({ name }) => name ?? ''),
  );
}

/**
 * Addresses (`IP:0/NONCE`) of the clients that have the image open for writing, one that has died up to 30 s
 * ago included.
 */
export function watchers(run: RunTool, image: RbdLocation): Promise<Answer<readonly string[]>> {
  return ask(run, image, ['status'], (reply) =>
    ((reply as { watchers?: readonly { address?: string }[] }).watchers ?? []).map(
      ({ address }) => address ?? '',
    ),
  );
}

async function ask<Value>(
  run: RunTool,
  image: RbdLocation,
  command: readonly string[],
  read: (reply: unknown) => Value,
): Promise<Answer<Value>> {
  const result = await rbd(run, image, [...command, '--format=json'], QUESTION_LIMIT_MS);
  if (result.kind !== 'done') {
    return { whyNot: rbdFailure(image, command.join(' '), result), isStalled: result.kind === 'late' };
  }
  return { value: read(JSON.parse(result.stdout)) };
}
