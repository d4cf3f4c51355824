/**
 * Objects of a repository whose seals are right (`resealed-repository.ts`): listed, shown, verified, read back, compared,
 * forgotten. What `verify` finds nothing wrong with can be read back, and the verifier that was written from the document
 * alone finds nothing wrong with it either.
 */

import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { disksOfStoppedQemu } from '../../../adapters/disks/disk-drivers.js';
import { chainOfKey } from '../../../src/format/chain-keys.js';
import { diskEntry } from '../../../src/format/disk-entry.js';
import { manifestKey, type Manifest } from '../../../src/format/manifest.js';
import { isCheckpointError } from '../../../src/errors.js';
import { diffCheckpoints } from '../../../src/repository/diff.js';
import { Calendar, parseDuration } from '../../../src/repository/forget/calendar.js';
import { forget } from '../../../src/repository/forget/forget.js';
import { Repository } from '../../../src/repository/repository.js';
import { verify } from '../../../src/repository/verify/verify.js';
import { MemoryBackend } from '../../../src/storage/memory.js';
import { verifyRepository } from '../../golden/verifier.js';
import { mutateBytes } from '../mutate-bytes.js';
import { mutateJson } from '../mutate-json.js';
import { goldenObjects, readPart, withPart, type Objects, type Part } from '../resealed-repository.js';
import { justifiedBytes, must, type Mutate, type OpenTarget } from '../target.js';

/** Read back up to this size: a memory of zeros is as large as it likes. */
const MAX_READ_BYTES = 16 << 20;
const CHECKED_ONE_IN = 8;
const SMALL_CHAIN = 'vms/gr_c3_b6_c3_9fe_2f2';
const LOCK = {
  format: 'cairn-repository',
  version: 1,
  requires: [],
  time: '2026-11-23T09:58:50.153Z',
  bootId: 'a',
  machineId: 'b',
  hostName: 'c',
  pidNamespace: 'pid:[1]',
  pid: 1,
  startTime: '2',
};

/** A line that says which part, then the part. */
function inputOf(part: Part, content: Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from(`${JSON.stringify(part)}\n`), content]);
}

function readInput(input: Uint8Array): { readonly part: Part; readonly content: Uint8Array } | undefined {
  const end = input.indexOf(0x0a);
  if (end < 0) return undefined;
  try {
    return {
      part: JSON.parse(Buffer.from(input.subarray(0, end)).toString('utf8')) as Part,
      content: input.subarray(end + 1),
    };
  } catch {
    return undefined;
  }
}

const mutate: Mutate = (input, random, others) => {
  const read = readInput(input);
  if (read === undefined) return input;
  const { part, content } = read;
  const contents = others.flatMap((one) => readInput(one)?.content ?? []);
  const change = part.part === 'text' ? mutateJson : mutateBytes;
  return inputOf({ ...part, fits: random(3) > 0 }, change(content, random, contents));
};

function seedsOf(objects: Objects): readonly Uint8Array[] {
  const parts: Part[] = [];
  const add = (key: string, part: Part['part'], frame = 0): void =>
    void parts.push({ key, part, frame, fits: true });
  for (const key of objects.keys()) {
    if (/^config$|\/vm$|\/checkpoints\/0000000[1ac]/.test(key)) add(key, 'text');
    else if (/\/index\/0000000[15a]$/.test(key)) add(key, 'segment');
    else if (/\/packs\/0000000[128c]$/.test(key)) {
      add(key, 'directory');
      for (const frame of [0, 1, 2]) add(key, 'frame', frame);
    }
  }
  const lock: Part = { key: `${SMALL_CHAIN}/locks/0011223344556677`, part: 'text', frame: 0, fits: true };
  return [
    ...parts.flatMap((part) => {
      const content = readPart(objects, part);
      return content === undefined ? [] : [inputOf(part, content)];
    }),
    inputOf(lock, Buffer.from(JSON.stringify(LOCK))),
  ];
}

export const openTarget: OpenTarget = (workDir) => {
  const golden = goldenObjects();
  const folder = join(workDir, 'repo');
  return Promise.resolve({
    seeds: seedsOf(golden),
    mutate,
    // A map and a window of pages beside what the others take.
    allowedBytes: (inputBytes: number) => justifiedBytes(inputBytes) + MAX_READ_BYTES,
    run: async (input) => {
      const read = readInput(input);
      if (read === undefined || !isKnown(read.part, golden)) return 'no part';
      const objects = withPart(golden, read.part, read.content);
      return runOver(objects, read.part, folder, read.content.length % CHECKED_ONE_IN === 0);
    },
  });
};

function isKnown(part: Part, golden: Objects): boolean {
  return part.key.includes('/locks/') ? part.part === 'text' : readPart(golden, part) !== undefined;
}

async function runOver(
  objects: Objects,
  part: Part,
  folder: string,
  checksDocument: boolean,
): Promise<string> {
  const backend = new MemoryBackend();
  for (const [key, bytes] of objects) await backend.save(key, bytes);
  const repository = await Repository.open(backend);
  await repository.chains();
  const chain = chainOfKey(part.key);
  const { manifests } = await repository.checkpoints(chain);
  for (const manifest of manifests) show(manifest);
  const { problems } = await verify(repository, chain === undefined ? {} : { chain });
  const ends = [`problems ${Math.min(problems.length, 3)}`];
  const small = manifests.filter(({ layout }) => layout.sizeBytes <= MAX_READ_BYTES);
  const read = new Set([small[0], small.at(-1), small.find((one) => manifestKey(one) === part.key)]);
  for (const manifest of read)
    if (manifest !== undefined) ends.push(await codeOf(() => readBack(repository, manifest)));
  if (problems.length === 0) {
    must(!ends.some((end) => end.startsWith('failed')), `verify finds nothing, but ${ends.join(', ')}`);
    // It takes longer than all the rest.
    if (checksDocument) mustVerify(objects, folder);
  }
  const [older, newer] = small.slice(-2);
  if (older !== undefined && newer !== undefined)
    ends.push(await codeOf(() => diffCheckpoints(repository, older, newer)));
  for (const source of await repository.sweepSources(chain)) {
    const policy = { last: 1, daily: 1, weekly: 1, within: parseDuration('1d') };
    const choice = { policy, calendar: new Calendar('UTC') };
    ends.push(await codeOf(() => forget(source, choice)));
  }
  return [...new Set(ends)].join(' ');
}

/** What `show --json` prints, and what is asked of the disks in it. */
function show(manifest: Manifest): void {
  JSON.stringify({ ...manifest, disks: manifest.disks.map(diskEntry) });
  const drivers = disksOfStoppedQemu(manifest.machine);
  for (const disk of manifest.disks) {
    for (const question of [
      () => drivers.remedy(disk),
      () => drivers.needs(disk),
      () => drivers.overwrites(disk),
      () => drivers.movedTo(disk, '/elsewhere'),
      () => drivers.standIns([disk], manifest.id),
      () => drivers.refuseUnknown([disk]),
    ])
      orCode(question);
  }
}

function orCode(question: () => unknown): void {
  try {
    question();
  } catch (error) {
    if (!isCheckpointError(error)) throw error;
  }
}

async function readBack(repository: Repository, manifest: Manifest): Promise<void> {
  const reader = repository.reader(manifest);
  let sizeBytes = 0;
  for await (const { pageCount } of reader.pages()) sizeBytes += pageCount * 4096;
  must(sizeBytes === manifest.layout.sizeBytes, 'all pages are read back');
  await reader.deviceState();
}

async function codeOf(work: () => Promise<unknown>): Promise<string> {
  try {
    await work();
    return 'done';
  } catch (error) {
    if (!isCheckpointError(error)) throw error;
    return `failed ${error.code}`;
  }
}

/** The verifier of test/golden reads files. */
function mustVerify(objects: Objects, folder: string): void {
  rmSync(folder, { recursive: true, force: true });
  for (const [key, bytes] of objects) {
    const path = join(folder, key);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, bytes);
  }
  try {
    verifyRepository(folder);
  } catch (error) {
    throw new Error(`verify finds nothing, but by the document: ${String(error)}`, { cause: error });
  }
}
