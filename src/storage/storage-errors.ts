/** Translates errno names to the codes of the storage contract. */

import { CheckpointError, systemErrorCode } from '../errors.js';

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
      return notFound(key, location);
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
