/**
 * Where a repository keeps its objects. Small on purpose: an object is created once, whole or not at all, and
 * never changed in part; that is what makes a crash at any point harmless (docs/format.md, write order).
 *
 * Keys are relative paths of [A-Za-z0-9._-] segments joined by "/". Every call takes an AbortSignal; an
 * aborted call rejects with INTERRUPTED and leaves no partial object visible.
 *
 * A call that changes something may be carried out although its answer is lost. Then it rejects with
 * STORAGE_UNCERTAIN: it may have taken effect, whole, or not at all, and `confirm` finds out. After every
 * other code that is named below it certainly had no effect. What a backend cannot sort into one of these
 * codes it must call uncertain. `SettledBackend` asks `confirm` in the place of its callers.
 */

export interface StoredObject {
  readonly key: string;
  readonly sizeBytes: number;
}

export interface StorageProperties {
  /** The address as messages name it: file:/srv/cairn, memory: */
  readonly location: string;
  /** Whether `save` returns only after the object survives a power cut. */
  readonly durable: boolean;
  /** The size that a pack should have there; absent where larger ones do no harm. */
  readonly packBytes?: number;
}

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

export interface SaveOptions extends CallOptions {
  /**
   * Called when the object is written and durable but for its name, right before it gets that: what it throws
   * fails the save, and there is no object. An unfinished object that `removeUnfinished` has removed by then
   * gets no name either.
   */
  readonly beforeVisible?: (() => Promise<void>) | undefined;
}

export type ObjectBody = Uint8Array | AsyncIterable<Uint8Array>;

export interface StorageBackend {
  readonly properties: StorageProperties;
  /**
   * Creates an object atomically: readers see all of it or nothing, and it is durable when the call returns.
   * An iterable body is consumed once; the chunks may be reused by the producer after the next one is asked
   * for.
   * @returns bytes written
   * @throws STORAGE_EXISTS when the key is taken by an object of another call, and not by one that this call
   *   made before its answer was lost (the object there stays as it is), STORAGE_NOT_FOUND when
   *   `removeUnfinished` has removed what was being written, STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_IO,
   *   STORAGE_UNCERTAIN
   */
  save(key: string, body: ObjectBody, options?: SaveOptions): Promise<number>;
  /**
   * `lengthBytes` bytes from `offsetBytes`, exactly. Caller owns them.
   * @throws STORAGE_NOT_FOUND, STORAGE_RANGE when the object is shorter, STORAGE_IO
   */
  load(
    key: string,
    range?: { readonly offsetBytes: number; readonly lengthBytes: number },
    options?: CallOptions,
  ): Promise<Uint8Array>;
  /**
   * Asks the storage itself, no cache: an object that another host has removed is not there.
   * @throws STORAGE_NOT_FOUND
   */
  stat(key: string, options?: CallOptions): Promise<StoredObject>;
  /** All objects whose key starts with `prefix`, sorted by key. Unfinished saves are not listed. */
  list(prefix: string, options?: CallOptions): Promise<readonly StoredObject[]>;
  /**
   * Puts another body in the place of an object, atomically and durably: readers see the old or the new one,
   * whole. The body as in `save`. Only for what the format allows to be replaced (docs/format.md,
   * forgetting). One writer at a time.
   * @returns bytes written
   * @throws STORAGE_NOT_FOUND when there is no such object, STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_IO; the
   *   object is as it was then; STORAGE_UNCERTAIN: it is the old or the new one
   */
  replace(key: string, body: ObjectBody, options?: SaveOptions): Promise<number>;
  /**
   * The object is gone for good when the call returns, also after a power cut.
   * @throws STORAGE_NOT_FOUND when there was none before this call, STORAGE_READ_ONLY, STORAGE_IO,
   *   STORAGE_UNCERTAIN
   */
  remove(key: string, options?: CallOptions): Promise<void>;
  /**
   * Finds out what a call has left whose answer was lost. What it says is durable and final: a call from
   * before that is still under way somewhere must not change it afterwards. A backend that cannot see to this
   * says that it is uncertain.
   * @returns the object that is there; undefined when there is none
   * @throws STORAGE_UNCERTAIN when it cannot be said (yet)
   */
  confirm(key: string, options?: CallOptions): Promise<StoredObject | undefined>;
  /**
   * Removes what saves have left unfinished directly below a prefix that ends with "/", or at the top for '',
   * those of living writers as well: they fail then. For a caller who knows that nobody else may write there,
   * such as the owner of a chain's lock. What this object saves itself stays. Absent where an unfinished save
   * leaves nothing.
   * @returns how many were removed
   */
  removeUnfinished?(prefix: string, options?: CallOptions): Promise<number>;
  /**
   * Names of what lies at the top, beside objects and prefixes of the names of `known`, and was put there by
   * others than the file system or an unfinished save. Absent where nobody else can put anything.
   */
  foreignNames?(known: readonly string[], options?: CallOptions): Promise<readonly string[]>;
  /**
   * Bytes that may still be stored, as far as that can be said: others may use them up, and a quota may end
   * before. Absent, or undefined, where nobody can say. @throws STORAGE_IO
   */
  freeBytes?(options?: CallOptions): Promise<number | undefined>;
  close(): Promise<void>;
}
