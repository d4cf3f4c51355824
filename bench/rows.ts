/** One measured figure, as bench/results/latest.json holds it. */

export type BenchArea =
  | 'scan'
  | 'delta-size'
  | 'delta-speed'
  | 'pause'
  | 'checkpoint-time'
  | 'slow-down'
  | 'memory'
  | 'chain'
  | 'growth'
  | 'xen';

export interface BenchRow {
  readonly area: BenchArea;
  /** What was measured. */
  readonly name: string;
  readonly workload: string;
  /** Cairn's figure: a median unless the name says otherwise. */
  readonly value: number;
  readonly unit: string;
  /** What it is held against, measured in the same run; empty when nothing. */
  readonly peer: string;
  readonly peer_value: number | null;
  /** value / peer_value. */
  readonly ratio: number | null;
  /** In words, with the bound; empty when the row is for information. */
  readonly goal: string;
  readonly met: boolean | null;
}

export interface BenchContext {
  readonly quick: boolean;
  /** Says what is being measured. */
  readonly progress: (text: string) => void;
  /** Whether that share of the section's budget is used up: repeats end early then. */
  readonly timeIsUp: (share?: number) => boolean;
}

/** The middle value; the mean of the two middle ones of an even number. */
export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** Linear interpolation between the neighbours. */
export function quantile(values: readonly number[], q: number): number {
  if (values.length === 0) throw new RangeError('no values');
  const sorted = [...values].sort((a, b) => a - b);
  const at = (sorted.length - 1) * q;
  const low = sorted[Math.floor(at)]!;
  return low + (sorted[Math.ceil(at)]! - low) * (at - Math.floor(at));
}

/** Rounded to what a reader can use: four significant digits. */
export function significant(value: number): number {
  return Number(value.toPrecision(4));
}

/** A row held against a peer. `met` decides on the exact figures. */
export function againstPeer(
  row: Pick<BenchRow, 'area' | 'name' | 'workload' | 'unit' | 'peer'> & {
    readonly value: number;
    readonly peerValue: number;
  },
  goal = '',
  met: ((ratio: number) => boolean) | null = null,
): BenchRow {
  const { peerValue, value, ...rest } = row;
  const ratio = value / peerValue;
  return {
    ...rest,
    value: significant(value),
    peer_value: significant(peerValue),
    ratio: significant(ratio),
    goal,
    met: met === null ? null : met(ratio),
  };
}

/** A row that stands for itself. */
export function alone(
  row: Pick<BenchRow, 'area' | 'name' | 'workload' | 'unit' | 'value'>,
  goal = '',
  met: ((value: number) => boolean) | null = null,
): BenchRow {
  return {
    ...row,
    value: significant(row.value),
    peer: '',
    peer_value: null,
    ratio: null,
    goal,
    met: met === null ? null : met(row.value),
  };
}
