/** What the ground-truth suite reports: one JSON line for each event, on the console when it runs in the nested lab. */

export const LINE_MARK = '@cairn ';
/** Step of the last checkpoint, which is taken as another process would. */
export const SECOND_ATTACHMENT = 'by a second attachment';

export interface CheckpointLine {
  readonly event: 'checkpoint';
  readonly scenario: string;
  readonly tracker: string;
  readonly step: string;
  /** First pages that are not what the guest had; empty when the checkpoint is exact. */
  readonly differing: readonly string[];
  readonly kind: 'base' | 'incremental';
  /** Why all pages were compared; empty when the tracker was trusted. */
  readonly compareReason: string;
  readonly dirtyPages: number;
  readonly rounds: number;
  readonly pauseMs: number;
  readonly roundStopsMs: number;
}

export type TruthLine =
  | {
      readonly event: 'started';
      readonly kernel: string;
      readonly accelerator: string;
      /** Trackers that the kernel has. */
      readonly trackers: readonly string[];
    }
  | CheckpointLine
  | {
      readonly event: 'refused';
      readonly scenario: string;
      readonly tracker: string;
      readonly code: string;
      readonly text: string;
    }
  | {
      readonly event: 'verified';
      readonly scenario: string;
      readonly tracker: string;
      readonly problems: readonly unknown[];
    }
  | { readonly event: 'checked'; readonly scenario: string; readonly faults: readonly string[] }
  | { readonly event: 'skipped'; readonly scenario: string; readonly reason: string }
  | { readonly event: 'done' }
  | { readonly event: 'failed'; readonly message: string };

export function printLine(line: TruthLine): void {
  process.stdout.write(
    `\n${LINE_MARK}${JSON.stringify({ ...line, upSeconds: Math.round(process.uptime()) })}\n`,
  );
}

/** Lines of the kernel and of QEMU in between are left out, and so is a last line that is not complete yet. */
export function parseLines(text: string): readonly TruthLine[] {
  return text
    .split('\n')
    .slice(0, -1)
    .filter((line) => line.startsWith(LINE_MARK))
    .map((line) => JSON.parse(line.slice(LINE_MARK.length)) as TruthLine);
}
