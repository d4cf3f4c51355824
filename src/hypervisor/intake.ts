/** Machines out of files and streams of the hypervisors' own tools. */

import type { JsonObject } from '../types.js';
import type { ByteSource } from './byte-source.js';
import type { MemoryLayout } from './memory-layout.js';
import type { RunState } from './run-state.js';
import type { VmIdentity } from './vm.js';

/** So much of its beginning tells what a file is. */
export const RECOGNITION_BYTES = 64;

/** A format that is imported. */
export interface ImportFormat {
  readonly name: string;
  /** What such a file is, for messages: `a file of xl save`. */
  readonly what: string;
  /**
   * What the file is that begins so, in words, when it is of this format or may be.
   * @param head `RECOGNITION_BYTES`, or all of a shorter file
   */
  readonly recognise: (head: Uint8Array) => string | undefined;
}

/** A file that somebody may take for one that can be imported. */
export interface ForeignFile {
  readonly what: string;
  readonly hint: string;
  readonly isBegunBy: (head: Uint8Array) => boolean;
}

/** A machine as a file of the hypervisor's own tools holds it, without its memory. */
export interface ImportedMachine {
  readonly identity: Omit<VmIdentity, 'instance'>;
  /** What `Vm.machine` would say. */
  readonly machine: JsonObject;
  /** What `VmDeviceState.take` would give. */
  readonly deviceState: Uint8Array;
  /** How it was when it was saved, which a restore goes by; default: it ran. */
  readonly runState?: RunState | undefined;
  /** What whoever restores it has to know. */
  readonly warnings?: readonly string[];
}

/** Where an import puts pages; the last one of a page counts. A page that was never put is absent. */
export interface MemorySink {
  put(page: number, bytes: Uint8Array): void;
  putZero(page: number): void;
}

export interface ImportRequest {
  readonly format: string;
  /**
   * The file from its start, to be iterated over once. May be called again, unless the input is a pipe.
   * @throws USAGE when a pipe is opened again
   */
  readonly open: () => ByteSource;
  readonly signal?: AbortSignal | undefined;
  /** Called once, when the layout of the memory is known. */
  readonly place: (layout: MemoryLayout) => MemorySink;
}

export interface ReceiveRequest {
  /**
   * Whoever reads the stream reads on at once, whatever becomes of what was read: the machine stands still
   * until it is.
   */
  readonly stream: AsyncIterable<Uint8Array>;
  /** Folder that is nobody else's, where what was read is kept until it is applied. */
  readonly workDir: string;
  /** Called for each whole state, with the pages that came for it. */
  readonly onState?: (state: number, pageCount: number) => void;
}

/**
 * A machine that runs elsewhere and sends its states, each of one instant: first whole, then what has
 * changed.
 */
export interface ReceivedMachine extends Omit<ImportedMachine, 'deviceState'> {
  /** What changes are known by: the kind of a tracker. */
  readonly trackerKind: string;
  readonly layout: MemoryLayout;
  /**
   * Waits for a whole state that was not claimed yet.
   * @returns false when the stream has ended
   * @throws STREAM_MALFORMED and what reading it throws
   */
  nextState(): Promise<boolean>;
  /**
   * The newest whole state. Earlier states that were not applied are in it.
   * @throws VM_UNSUPPORTED when the machine has become one whose changes are not all in the stream
   */
  claim(): Promise<ReceivedState>;
  /** Takes nothing more of the stream, which is its owner's to end. */
  close(): void;
}

export interface ReceivedState {
  /** Number of the state, counted from 1. */
  readonly number: number;
  /** How many of the stream's states it stands for. */
  readonly stateCount: number;
  readonly pageCount: number;
  /**
   * How long the machine stood still to send the last of them; undefined when that cannot be told from the
   * stream.
   */
  readonly pauseMs: number | undefined;
  /**
   * Puts the pages that came, and gives the rest of the state, as `VmDeviceState.take`. What fails here may
   * be done again.
   */
  apply(memory: MemorySink): Promise<Uint8Array>;
}

/** Whether a file with this beginning is one of that magic. */
export function begins(head: Uint8Array, magic: Uint8Array): boolean {
  return Buffer.compare(head.subarray(0, magic.length), magic) === 0;
}
