/** Tells what fails here from what fails in the QEMU that is fed. */

import { describeError } from '../../../src/errors.js';

/** A failure on this side of the stream. It makes QEMU end too, and must not be taken for QEMU's. */
export class OwnFailure extends Error {
  readonly reason: unknown;

  constructor(reason: unknown) {
    super(describeError(reason));
    this.reason = reason;
  }
}

export async function ownStep<Value>(step: Promise<Value>): Promise<Value> {
  return step.catch((error: unknown) => {
    throw new OwnFailure(error);
  });
}
