/**
 * Sees every buffer of a length that somebody asks for, in this process, while code under test runs: a length that was read
 * from an input must not be allocated before that input has shown the bytes for it. Memory that is asked for and never
 * touched takes no room, and so would not show in the size of the process.
 */

const WATCHED = [
  'ArrayBuffer',
  'SharedArrayBuffer',
  'Uint8Array',
  'Uint16Array',
  'Int32Array',
  'Uint32Array',
  'Float64Array',
  'BigUint64Array',
] as const;

export interface Allocation {
  readonly bytes: number;
  /** Where it was asked for. */
  readonly stack: string;
}

let limitBytes = Infinity;
let tooLarge: Allocation | undefined;

/** From here on allocations above the limit are noted. */
export function watchAllocations(limit: number): void {
  limitBytes = limit;
  tooLarge = undefined;
}

/** @returns the first one above the limit */
export function stopWatching(): Allocation | undefined {
  limitBytes = Infinity;
  return tooLarge;
}

function note(bytes: number): void {
  if (!(bytes > limitBytes) || tooLarge !== undefined) return;
  tooLarge = { bytes, stack: new Error('allocated').stack ?? '' };
}

/** Once in a process, before the code under test is loaded. */
export function installWatch(): void {
  for (const name of WATCHED) {
    const plain = globalThis[name];
    const unit = 'BYTES_PER_ELEMENT' in plain ? plain.BYTES_PER_ELEMENT : 1;
    const watched: object = new Proxy(plain, {
      construct(target, args: readonly unknown[], newTarget: unknown): object {
        if (typeof args[0] === 'number') note(args[0] * unit);
        const made: unknown = newTarget === watched ? target : newTarget;
        return Reflect.construct(target, args, made as typeof target) as object;
      },
    });
    Reflect.set(globalThis, name, watched);
  }
  for (const name of ['alloc', 'allocUnsafe', 'allocUnsafeSlow'] as const) {
    const plain = Buffer[name].bind(Buffer) as (size: number, ...more: unknown[]) => Buffer;
    const watched = (size: number, ...more: unknown[]): Buffer => {
      note(size);
      return plain(size, ...more);
    };
    Reflect.set(Buffer, name, watched);
  }
}
