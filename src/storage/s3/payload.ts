/**
 * The body of an upload, whole, with its length and SHA-256, so that it can be signed, and sent once more when
 * an answer is lost. Small ones stay in memory, longer ones in a file without a name.
 */

import { createHash } from 'node:crypto';
import { open, unlink, type FileHandle } from 'node:fs/promises';
import { randomUUID } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { ObjectBody } from '../backend.js';
import { throwIfInterrupted } from '../interrupted.js';
import { EMPTY_SHA256 } from './signature.js';

/** More than a pack has, as the backend asks for them (`PACK_BYTES` of `s3-backend.ts`). */
const MOST_IN_MEMORY = 64 * 1024 * 1024;
const READ_BYTES = 1024 * 1024;

export interface Payload {
  readonly sizeBytes: number;
  /** Hex. */
  readonly sha256: string;
  /** From the start, each time it is called. */
  chunks(): AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
  close(): Promise<void>;
}

export const NO_PAYLOAD: Payload = {
  sizeBytes: 0,
  sha256: EMPTY_SHA256,
  chunks: () => [],
  close: () => Promise.resolve(),
};

/** A body that is there already; the bytes must not change until it is sent. */
export function payloadOf(bytes: Uint8Array): Payload {
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  return { ...NO_PAYLOAD, sizeBytes: bytes.length, sha256, chunks: () => [bytes] };
}

/**
 * Takes a body to its end.
 * @param hasRoom waited for before each chunk
 * @throws what the producer throws, INTERRUPTED, and system errors of the file
 */
export async function collectPayload(
  key: string,
  body: ObjectBody,
  signal: AbortSignal | undefined,
  hasRoom: () => Promise<void>,
): Promise<Payload> {
  throwIfInterrupted(signal, `writing ${key}`);
  if (body instanceof Uint8Array) return payloadOf(body.slice());
  const hash = createHash('sha256');
  const held: Uint8Array[] = [];
  let heldBytes = 0;
  let sizeBytes = 0;
  let file: FileHandle | undefined;
  try {
    for await (const chunk of body) {
      throwIfInterrupted(signal, `writing ${key}`);
      hash.update(chunk);
      sizeBytes += chunk.length;
      heldBytes += chunk.length;
      held.push(chunk.slice());
      if (heldBytes > MOST_IN_MEMORY) {
        file ??= await namelessFile();
        await file.appendFile(Buffer.concat(held.splice(0)));
        heldBytes = 0;
      }
      await hasRoom();
    }
    throwIfInterrupted(signal, `writing ${key}`);
    if (file !== undefined) await file.appendFile(Buffer.concat(held.splice(0)));
  } catch (error) {
    await file?.close();
    throw error;
  }
  const stored = file;
  return {
    sizeBytes,
    sha256: hash.digest('hex'),
    chunks: () => (stored === undefined ? held : readFrom(stored)),
    close: async () => stored?.close(),
  };
}

/** For its owner only, and gone with the process. */
async function namelessFile(): Promise<FileHandle> {
  const path = join(tmpdir(), `cairn-upload-${randomUUID()}`);
  const file = await open(path, 'wx+', 0o600);
  await unlink(path);
  return file;
}

async function* readFrom(file: FileHandle): AsyncGenerator<Uint8Array> {
  for (let position = 0; ;) {
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(READ_BYTES), 0, READ_BYTES, position);
    if (bytesRead === 0) return;
    position += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}
