/** Translates errno names to the codes of the storage contract. */

import { CheckpointError, describeError, isCheckpointError, systemErrorCode } from '../errors.js';

export function notFound(key: string, location: string): CheckpointError {
  return new CheckpointError('STORAGE_NOT_FOUND', `no object ${key} in ${location}`, { detail: { key } });
}

export function alreadyExists(key: string, location: string): CheckpointError {
  return new CheckpointError('STORAGE_EXISTS', `object ${key} exists already in ${location}`, {
    detail: { key },
  });
}

export function outOfRange(key: string, wantedEnd: number, sizeBytes: number): CheckpointError {
  return new CheckpointError(
    'STORAGE_RANGE',
    `object ${key} has ${sizeBytes} bytes, ${wantedEnd} were asked for`,
    {
      detail: { key, sizeBytes, wantedEnd },
    },
  );
}

/** The unfinished object was removed before it had its name (`StorageBackend.removeUnfinished`). */
export function unfinishedGone(key: string, location: string, cause: unknown): CheckpointError {
  return new CheckpointError(
    'STORAGE_NOT_FOUND',
    `writing ${key} in ${location}: what was written is gone, somebody has removed it`,
    {
      cause,
      detail: { key },
      hint: 'make sure that no other cairn writes there, and that nobody removes files of the repository',
    },
  );
}

/** A call that changes something has no answer: it may have taken effect, or not. */
export function uncertain(step: string, key: string, location: string, cause: unknown): CheckpointError {
  return new CheckpointError(
    'STORAGE_UNCERTAIN',
    `${step} ${key} in ${location}: whether it was done cannot be said (${describeError(cause)})`,
    {
      cause,
      detail: { key, ...errnoOf(cause) },
      hint: 'see to it that the storage answers again, and repeat the command; what was committed is not affected',
    },
  );
}

/** A call had no answer, and it is known by now that it had no effect. */
export function withoutEffect(step: string, key: string, location: string, cause: unknown): CheckpointError {
  return new CheckpointError('STORAGE_IO', `${step} ${key} in ${location}: no answer, and it was not done`, {
    cause,
    detail: { key },
    retryable: true,
  });
}

function errnoOf(cause: unknown): { readonly errno?: string } {
  const errno = isCheckpointError(cause) ? undefined : systemErrorCode(cause);
  return errno === undefined ? {} : { errno };
}

/** Memory for a whole object. @throws STORAGE_IO when it does not fit: whoever made it may have made it of nothing */
export function roomFor(key: string, sizeBytes: number): Uint8Array {
  try {
    return new Uint8Array(sizeBytes);
  } catch (cause) {
    throw new CheckpointError('STORAGE_IO', `reading ${key}: ${sizeBytes} bytes do not fit in memory`, {
      cause,
      detail: { key, sizeBytes },
      hint: 'no object of a repository that is read as a whole is that long: look at the file',
    });
  }
}

/** A failure of the file system during `step` ("writing", "reading") on an object. */
export function fromSystemError(
  cause: unknown,
  step: string,
  key: string,
  location: string,
): CheckpointError {
  const errno = systemErrorCode(cause) ?? 'unknown error';
  const text = `${step} ${key === '' ? location : `${key} in ${location}`}: ${errno}`;
  const detail = { key, errno };
  switch (errno) {
    case 'ENOENT':
      if (step !== 'writing') return notFound(key, location);
      return new CheckpointError('STORAGE_IO', `${text}: the folder or the unfinished file is gone`, {
        cause,
        detail,
        hint: 'nobody else may remove files of a repository',
      });
    case 'ENOTDIR':
    case 'EISDIR':
      if (step !== 'writing') return notFound(key, location);
      return new CheckpointError('STORAGE_IO', text, {
        cause,
        detail,
        hint: 'files and folders of others are in the way',
      });
    case 'ENOSPC':
    case 'EDQUOT':
      return new CheckpointError('STORAGE_FULL', text, {
        cause,
        detail,
        hint: 'free space (or raise the quota) on the file system of the repository; nothing that was committed is affected',
      });
    case 'EROFS':
      return new CheckpointError('STORAGE_READ_ONLY', text, {
        cause,
        detail,
        hint: 'the file system is mounted read-only; look for I/O errors in the kernel log, then remount it',
      });
    case 'EACCES':
    case 'EPERM':
      return new CheckpointError(step === 'reading' ? 'STORAGE_IO' : 'STORAGE_READ_ONLY', text, {
        cause,
        detail,
        hint: 'folders of a repository are open to their owner only; run as that user',
      });
    default:
      return new CheckpointError('STORAGE_IO', text, {
        cause,
        detail,
        retryable: errno === 'EINTR' || errno === 'EAGAIN',
      });
  }
}
