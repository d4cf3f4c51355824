/** What a checkpoint records of a copied file (docs/format.md, disks), read back with care. */

import { createHash } from 'node:crypto';
import { promisify } from 'node:util';
import { deflateRaw, inflateRawSync } from 'node:zlib';

import { diskFeature, type DiskSnapshot } from '../../../src/hypervisor/disks.js';
import { fieldsOf } from '../record-fields.js';

export const COPY = 'copy';

/** A store of UEFI variables has 128 or 528 KiB; QEMU gives the flash of a PC 8 MiB at most. */
export const MAX_FILE_BYTES = 8 << 20;
/** As it is stored: in base64 it must fit into what a manifest takes of a disk, 1 MiB with all fields. */
export const MAX_STORED_BYTES = 512 << 10;

/** The content of a file. */
export interface Content {
  readonly bytes: Buffer;
  /** The same by deflate without a header (RFC 1951). */
  readonly stored: Buffer;
  readonly sha256: string;
}

/** The content is in the record: a checkpoint with it needs nothing beside the repository. */
export interface FileCopy extends Content {
  readonly diskId: string;
  /** The path by which the hypervisor names the file. */
  readonly path: string;
  /** Absolute. */
  readonly filePath: string;
}

const ABSOLUTE_PATH = /^\/[^\0]*$/;
const SHA256 = /^[0-9a-f]{64}$/;
const BASE64 = /^[A-Za-z0-9+/]+={0,2}$/;

export async function contentOf(bytes: Buffer): Promise<Content> {
  return { bytes, stored: await promisify(deflateRaw)(bytes), sha256: digestOf(bytes) };
}

export function copyRecord({ diskId, path, filePath, bytes, stored, sha256 }: FileCopy): DiskSnapshot {
  const data = {
    filePath,
    sizeBytes: bytes.length,
    sha256,
    content: stored.toString('base64'),
  };
  return { diskId, path, driver: COPY, data, feature: diskFeature(COPY) };
}

/** @throws REPO_DAMAGED, also for bytes that are not those which were copied */
export function fileCopy(record: DiskSnapshot): FileCopy {
  const { diskId, path } = record;
  const fields = fieldsOf(record);
  const filePath = fields.matching('filePath', ABSOLUTE_PATH);
  const sizeBytes = fields.count('sizeBytes');
  const sha256 = fields.matching('sha256', SHA256);
  const stored = Buffer.from(fields.matching('content', BASE64), 'base64');
  const bytes = inflated(stored);
  if (bytes?.length !== sizeBytes || digestOf(bytes) !== sha256)
    return fields.wrong('content', 'what its size and digest say');
  return { diskId, path, filePath, bytes, stored, sha256 };
}

function inflated(stored: Buffer): Buffer | undefined {
  try {
    return inflateRawSync(stored, { maxOutputLength: MAX_FILE_BYTES });
  } catch {
    // The caller says what is wrong.
    return undefined;
  }
}

function digestOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
