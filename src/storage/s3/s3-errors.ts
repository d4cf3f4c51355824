/** Translates what a store answers to the codes of the storage contract. */

import { CheckpointError, type ErrorCode } from '../../errors.js';
import { uncertain } from '../storage-errors.js';
import type { Answer } from './exchange.js';
import { errorCodeOf, type NoAnswer } from './s3-client.js';

interface Meaning {
  readonly code: ErrorCode;
  readonly hint: string;
}

const KEYS = 'see that the keys are right and may do this: their policy, that of the bucket, the region';

const MEANINGS: Readonly<Record<string, Meaning>> = {
  NoSuchBucket: { code: 'STORAGE_IO', hint: 'make the bucket first; Cairn makes none' },
  QuotaExceeded: { code: 'STORAGE_FULL', hint: 'raise the quota, or free space with "cairn forget"' },
  PermanentRedirect: {
    code: 'STORAGE_IO',
    hint: 'name the region of the bucket: option region, or AWS_REGION',
  },
  AuthorizationHeaderMalformed: {
    code: 'STORAGE_IO',
    hint: 'name the region of the bucket: option region, or AWS_REGION',
  },
  InvalidAccessKeyId: { code: 'STORAGE_IO', hint: KEYS },
  SignatureDoesNotMatch: { code: 'STORAGE_IO', hint: KEYS },
  NotImplemented: {
    code: 'STORAGE_IO',
    hint: 'the store does not know conditional requests: see docs/repository.md about single-writer',
  },
};

/** An answer that is a refusal. */
export function fromAnswer(step: string, key: string, location: string, answer: Answer): CheckpointError {
  const { status, body } = answer;
  const code = errorCodeOf(body);
  const isWrite = step === 'writing' || step === 'removing';
  const refused: Meaning = { code: isWrite ? 'STORAGE_READ_ONLY' : 'STORAGE_IO', hint: KEYS };
  const full: Meaning = { code: 'STORAGE_FULL', hint: MEANINGS.QuotaExceeded!.hint };
  const meaning = MEANINGS[code] ?? (status === 403 ? refused : status === 507 ? full : undefined);
  const what = key === '' ? location : `${key} in ${location}`;
  return new CheckpointError(
    meaning?.code ?? 'STORAGE_IO',
    `${step} ${what}: the store answered ${status}${code === '' ? '' : ` ${code}`}`,
    { ...(meaning === undefined ? {} : { hint: meaning.hint }), detail: { key, status, answer: code } },
  );
}

/** @param isChange whether the request was to change something */
export function fromNoAnswer(
  step: string,
  key: string,
  location: string,
  cause: NoAnswer,
  isChange: boolean,
): CheckpointError {
  if (isChange && cause.mayBeDone) return uncertain(step, key, location, cause);
  const what = key === '' ? location : `${key} in ${location}`;
  return new CheckpointError('STORAGE_IO', `${step} ${what}: the store did not answer (${cause.message})`, {
    cause,
    detail: { key },
    retryable: true,
    hint: 'see that the store can be reached from this host, and that the endpoint is right',
  });
}
