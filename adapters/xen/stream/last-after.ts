/**
 * What must be done when all of a stream has been read from the repository, and before its reader can act on
 * it.
 */

/**
 * Holds the last piece back until `step` is done; a source that breaks off, or a step that fails, keeps it
 * back for good.
 */
export async function* lastAfter(
  pieces: AsyncIterable<Uint8Array>,
  step: () => Promise<void>,
): AsyncGenerator<Uint8Array> {
  let held: Uint8Array | undefined;
  for await (const piece of pieces) {
    if (held !== undefined) yield held;
    held = piece;
  }
  await step();
  if (held !== undefined) yield held;
}
