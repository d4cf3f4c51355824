/** What `ListObjectsV2` answers. */

import { XMLParser } from 'fast-xml-parser';

export interface ListedObject {
  readonly name: string;
  readonly sizeBytes: number;
}

export interface ListAnswer {
  readonly objects: readonly ListedObject[];
  /** Where the next answer goes on; undefined after the last. */
  readonly next: string | undefined;
}

const parser = new XMLParser({ parseTagValue: false, isArray: (name) => name === 'Contents' });

/** @throws Error for anything else */
export function parseListAnswer(text: string): ListAnswer {
  const { ListBucketResult: result } = parser.parse(text) as { readonly ListBucketResult?: unknown };
  if (result === undefined) throw new Error('the answer is no list');
  const { Contents: contents = [], NextContinuationToken: next } = (result === '' ? {} : result) as {
    readonly Contents?: readonly Readonly<Record<string, unknown>>[];
    readonly NextContinuationToken?: unknown;
  };
  const objects = contents.map(({ Key: name, Size: size }) => {
    const sizeBytes = Number(size);
    if (typeof name !== 'string' || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0)
      throw new Error('the answer names something that is no object');
    return { name, sizeBytes };
  });
  return { objects, next: typeof next === 'string' && next !== '' ? next : undefined };
}
