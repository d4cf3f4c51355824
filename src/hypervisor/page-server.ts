/**
 * The page server: a process of its own that fills the memory of a VM which runs already. The core starts it and opens
 * the repository in it; the adapter says how pages reach its VM.
 *
 *     restore ---startPageServer---> page server: opens the repository
 *             ---serve-----------------> servePages of the adapter --------> VM
 *
 * It is started before the VM is, since both take their time.
 */

import type { JsonObject } from '../types.js';

/** A process, and not a later one of the same number. */
export interface ServedProcess {
  readonly pid: number;
  readonly startTime: string;
}

/**
 * What a page server is told: `go` once disks are in place; `running` once the VM runs on its device state, and the caller
 * has no more to do with it. Up to then a server that ends is not replaced, and the caller ends the VM.
 */
export type PageServerWord = 'go' | 'running';

export type ServingEvent =
  /** Nothing was sent by now; what can be known to be wrong was not. */
  | { readonly event: 'ready' }
  /** The VM has its device state and is about to run. */
  | { readonly event: 'started' }
  /** Pages that it has, of those that are not zero. */
  | { readonly event: 'progress'; readonly donePages: number }
  /** Pages that cannot be read: who needs one of them waits for it. */
  | {
      readonly event: 'damaged';
      readonly error: JsonObject;
      readonly pages: number;
      readonly isAwaited: boolean;
    };

export interface PageServerOrder {
  /** URL of the adapter's module. */
  readonly modulePath: string;
  /** Stays the caller's to close. */
  readonly stream: number;
  readonly bytesPerSecond: number;
}

/** The VM that a page server fills. */
export interface ServedVm {
  readonly vm: ServedProcess;
  readonly vmAddress: string;
  /** Of the adapter's own. */
  readonly args: JsonObject;
}

/** What a page server says. */
export type PageServerEvent =
  | ServingEvent
  /** It was killed. Once the caller has said `running`, another one takes its place. */
  | { readonly event: 'lost' }
  | { readonly event: 'done' }
  /** It has ended without an end. */
  | { readonly event: 'failed'; readonly error: JsonObject };

export interface PageServer {
  readonly totalPages: number;
  /** Process that looks after the server. */
  readonly pid: number;
  /** Once, when the VM is there. */
  serve(vm: ServedVm): void;
  tell(word: PageServerWord): void;
  /** The next thing it says. The last one is `done` or `failed`, which comes again and again. */
  next(): Promise<PageServerEvent>;
  /** Settles, and never rejects, when it was killed for the first time or has said its last. */
  readonly ended: Promise<PageServerEvent>;
  /** Ends it, before the VM runs. */
  end(): void;
  /** It goes on by itself, and this process need not wait for it. */
  letGo(): void;
}

export type StartPageServer = (order: PageServerOrder) => Promise<PageServer>;
