/** What the service knows of one VM, from what its watcher prints. */

const PAUSES_KEPT = 500;

export interface VmProblem {
  readonly code: string;
  readonly message: string;
  readonly hint: string;
  readonly atMs: number;
}

/** As it lies in the status file. */
export interface VmStatus {
  readonly address: string;
  readonly name: string;
  readonly policy: string;
  readonly repository: string;
  readonly everyMs: number;
  readonly rpoMs: number;
  /** `watched`; `waiting` until it is tried again; `gone` when the VM does not run. */
  readonly state: 'watched' | 'waiting' | 'gone';
  /** Since when this service knows of it, for one that has no checkpoint yet. */
  readonly sinceMs: number;
  readonly lastCheckpointId: string;
  /** 0 when there is none. */
  readonly lastMs: number;
  readonly lastKind: string;
  readonly tracker: string;
  /** Of the last checkpoints, newest last, in ms. */
  readonly pausesMs: readonly number[];
  readonly checkpoints: number;
  readonly failures: number;
  /** In bytes, of the day `day`. */
  readonly storedToday: number;
  readonly storedTotal: number;
  /** In this host's time: 2026-12-01. */
  readonly day: string;
  /** Cleared by the next checkpoint. */
  readonly problem: VmProblem | undefined;
}

type Message = Readonly<Record<string, unknown>>;

export function dayOf(ms: number): string {
  const at = new Date(ms);
  const two = (value: number): string => String(value).padStart(2, '0');
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
}

/** The status after a line of the watcher. */
export function withMessage(status: VmStatus, message: Message, nowMs: number): VmStatus {
  if (message.message_type === 'error') {
    const text = (key: string): string => (typeof message[key] === 'string' ? message[key] : '');
    return {
      ...status,
      failures: status.failures + 1,
      problem: { code: text('code'), message: text('message'), hint: text('hint'), atMs: nowMs },
    };
  }
  if (message.message_type !== 'summary' || typeof message.checkpoint_id !== 'string') return status;
  const stored = Number(message.stored_bytes);
  const day = dayOf(nowMs);
  return {
    ...status,
    lastCheckpointId: message.checkpoint_id,
    lastMs: nowMs,
    lastKind: String(message.kind),
    tracker: String(message.tracker),
    pausesMs: [...status.pausesMs, Number(message.pause_ms)].slice(-PAUSES_KEPT),
    checkpoints: status.checkpoints + 1,
    storedToday: (status.day === day ? status.storedToday : 0) + stored,
    storedTotal: status.storedTotal + stored,
    day,
    problem: undefined,
  };
}

/** Undefined without any. @param share 0.5 for the median */
export function percentile(values: readonly number[], share: number): number | undefined {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}

/** Of the newest checkpoint; without one, since the service knows of the VM. */
export function ageMs({ lastMs, sinceMs }: VmStatus, nowMs: number): number {
  return Math.max(0, nowMs - (lastMs === 0 ? sinceMs : lastMs));
}

/** A VM that does not run has nothing new to be saved. */
export function isLate(status: VmStatus, nowMs: number): boolean {
  return status.state !== 'gone' && ageMs(status, nowMs) > status.rpoMs;
}
