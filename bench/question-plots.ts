/** The plots of the page that docs/performance.md opens with (questions.ts), one a question. */

import * as Plot from '@observablehq/plot';

import { COLORS, type PlotSettings } from '../src/study/figure.js';
import { SAME_RANDOM_DATA } from './questions.js';
import type { BenchRow } from './rows.js';

const [FIRST, SECOND, THIRD, FOURTH] = COLORS;

/** By file name; a plot whose rows were not measured is left out. */
export function questionPlots(rows: readonly BenchRow[]): ReadonlyMap<string, PlotSettings> {
  const all: readonly (readonly [string, PlotSettings | undefined])[] = [
    ['pause-by-dirty-set', pauseBySize(rows)],
    ['time-by-workload', timeByWorkload(rows)],
    ['bytes-by-trace', bytesByTrace(rows)],
    ['slow-down-by-workload', slowDownByWorkload(rows)],
    ['growth-by-size', growthBySize(rows)],
    ['chain-by-length', chainByLength(rows)],
    ['memory-by-budget', memoryByBudget(rows)],
  ];
  return new Map(
    all.flatMap(([name, settings]) => (settings === undefined ? [] : [[name, settings] as const])),
  );
}

function pauseBySize(rows: readonly BenchRow[]): PlotSettings | undefined {
  const points = rows.flatMap(({ area, name, workload, value, peer_value }) => {
    const size = /^(\d+) GiB guest, (\d+) MiB rewritten$/.exec(workload);
    if (area !== 'pause' || name !== 'increment, p50' || size === null || peer_value === null) return [];
    return [
      { guest: `${size[1]!} GiB`, mib: Number(size[2]), ms: value },
      { guest: 'floor', mib: Number(size[2]), ms: peer_value },
    ];
  });
  if (points.length === 0) return undefined;
  const guests = [...new Set(points.map(({ guest }) => guest))].filter((guest) => guest !== 'floor');
  const colorOf = (point: { guest: string }): string =>
    point.guest === 'floor'
      ? 'var(--quiet)'
      : ([FIRST, SECOND, FOURTH][guests.indexOf(point.guest)] ?? FIRST);
  const last = guests.map((guest) => points.filter((point) => point.guest === guest).at(-1)!);
  return {
    x: { type: 'log', label: 'MiB rewritten between checkpoints', grid: true, tickFormat: '~g' },
    y: { label: 'pause p50, ms (grey: floor)', grid: true, zero: true },
    marginRight: 60,
    marks: [
      ...guests.map((guest) =>
        Plot.line(
          points.filter((point) => point.guest === guest),
          { x: 'mib', y: 'ms', stroke: colorOf({ guest }), strokeWidth: 2 },
        ),
      ),
      Plot.dot(points, { x: 'mib', y: 'ms', fill: colorOf, r: 3.5 }),
      Plot.text(last, { x: 'mib', y: 'ms', text: 'guest', dx: 8, textAnchor: 'start', fill: 'var(--ink)' }),
    ],
  };
}

function timeByWorkload(rows: readonly BenchRow[]): PlotSettings | undefined {
  const points = rows.flatMap(({ area, name, workload, value, peer, peer_value }) => {
    if (
      area !== 'checkpoint-time' ||
      peer_value === null ||
      !peer.startsWith('QEMU migrate to a file, durable') ||
      workload.endsWith(SAME_RANDOM_DATA)
    )
      return [];
    if (name.startsWith('base, total')) return [dots(`${workload}, base`, value, peer_value)];
    return name === 'increment, total, durable' ? [dots(workload, value, peer_value)] : [];
  });
  return points.length === 0
    ? undefined
    : dotPlot(points.flat(), 'ms (blue: Cairn, grey: migration of QEMU to a file)');
}

function bytesByTrace(rows: readonly BenchRow[]): PlotSettings | undefined {
  const points = rows.flatMap(({ area, name, workload, unit, value, peer, peer_value }) => {
    if (area !== 'delta-size' || name !== 'stored per checkpoint' || unit !== 'bytes' || peer_value === null)
      return [];
    const what = workload.split(' (')[0]!;
    if (peer === 'whole pages') return dots(what, value, peer_value);
    return peer === 'zstd -3 --patch-from' ? [{ what, value: peer_value, color: SECOND }] : [];
  });
  if (points.length === 0) return undefined;
  return {
    ...dotPlot(points, 'bytes a checkpoint (blue: Cairn, orange: zstd --patch-from, grey: whole pages)'),
    marginLeft: 110,
  };
}

/** Two marks of one line: Cairn's figure and that of its peer. */
function dots(what: string, value: number, peerValue: number): readonly Dot[] {
  return [
    { what, value: peerValue, color: 'var(--quiet)' },
    { what, value, color: FIRST },
  ];
}

interface Dot {
  readonly what: string;
  readonly value: number;
  readonly color: string;
}

/** A line for each `what`, in the order in which they come, on a logarithmic scale. */
function dotPlot(points: readonly Dot[], label: string): PlotSettings {
  const lines = [...new Set(points.map(({ what }) => what))];
  return {
    width: 760,
    height: 70 + lines.length * 22,
    marginLeft: 400,
    marginRight: 24,
    x: { type: 'log', label, grid: true, tickFormat: 's', nice: true },
    y: { type: 'band', label: null, domain: lines },
    marks: [Plot.dot(points, { x: 'value', y: 'what', fill: 'color', r: 4.5 })],
  };
}

function slowDownByWorkload(rows: readonly BenchRow[]): PlotSettings | undefined {
  const points = rows.flatMap(({ area, name, workload, ratio }) => {
    const every = /^operations per second, a checkpoint every (.*)$/.exec(name)?.[1];
    if (area !== 'slow-down' || every === undefined || ratio === null) return [];
    return [{ workload, every, lost: (1 - ratio) * 100 }];
  });
  if (points.length === 0) return undefined;
  const intervals = [...new Set(points.map(({ every }) => every))];
  const workloads = [...new Set(points.map(({ workload }) => workload))];
  const color = ({ every }: { every: string }): string =>
    [THIRD, FIRST, SECOND][intervals.indexOf(every)] ?? FOURTH;
  return {
    width: 760,
    height: 70 + workloads.length * 22,
    marginLeft: 110,
    x: {
      label: `% less work (a checkpoint every: green ${intervals.join(', blue ').replace(/, blue ([^,]*)$/, ', orange $1')})`,
      grid: true,
    },
    y: { type: 'band', label: null, domain: workloads },
    marks: [
      Plot.ruleX([0], { stroke: 'var(--ink)', strokeWidth: 1.5 }),
      Plot.dot(points, { x: 'lost', y: 'workload', fill: color, r: 4.5 }),
    ],
  };
}

function growthBySize(rows: readonly BenchRow[]): PlotSettings | undefined {
  const points = rows.flatMap(({ area, name, value }) => {
    const size = /^increment, (total|pause), (\d+) GiB guest$/.exec(name);
    return area !== 'growth' || size === null ? [] : [{ what: size[1]!, gib: Number(size[2]), ms: value }];
  });
  if (points.length === 0) return undefined;
  const of = (what: string) => points.filter((point) => point.what === what);
  return {
    x: { label: 'GiB of guest memory', grid: true },
    y: { label: 'ms (upper: total, lower: pause)', grid: true, zero: true },
    marks: [
      Plot.ruleY([0]),
      Plot.lineY(of('total'), { x: 'gib', y: 'ms', stroke: FIRST, strokeWidth: 2, marker: 'dot' }),
      Plot.lineY(of('pause'), { x: 'gib', y: 'ms', stroke: SECOND, strokeWidth: 2, marker: 'dot' }),
    ],
  };
}

function chainByLength(rows: readonly BenchRow[]): PlotSettings | undefined {
  const points = rows.flatMap(({ area, name, value }) => {
    const read = /^(.*), chain of (\d+)$/.exec(name);
    return area !== 'chain' || read === null ? [] : [{ what: read[1]!, length: Number(read[2]), ms: value }];
  });
  if (points.length === 0) return undefined;
  const kinds = [...new Set(points.map(({ what }) => what))];
  return {
    x: { type: 'log', label: 'checkpoints in the chain', grid: true, tickFormat: '~g' },
    y: { label: 'ms to read', grid: true, zero: true },
    marginRight: 120,
    marks: [
      Plot.ruleY([0]),
      ...kinds.map((kind, i) =>
        Plot.lineY(
          points.filter(({ what }) => what === kind),
          { x: 'length', y: 'ms', stroke: [FIRST, SECOND][i] ?? FOURTH, strokeWidth: 2, marker: 'dot' },
        ),
      ),
      Plot.text(
        kinds.map((kind) => points.filter(({ what }) => what === kind).at(-1)!),
        { x: 'length', y: 'ms', text: 'what', dx: 8, textAnchor: 'start', fill: 'var(--ink)' },
      ),
    ],
  };
}

/** A bar up to the highest resident size, with the budget as its darker part. */
function memoryByBudget(rows: readonly BenchRow[]): PlotSettings | undefined {
  const bars = rows.flatMap(({ area, name, workload, value }) => {
    const budget = /budget (\d+) MiB$/.exec(name)?.[1];
    if (area !== 'memory' || budget === undefined) return [];
    return [{ what: `${workload.split(',')[0]!}, budget ${budget} MiB`, budget: Number(budget), mib: value }];
  });
  if (bars.length === 0) return undefined;
  return {
    width: 760,
    height: 70 + bars.length * 30,
    marginLeft: 200,
    x: { label: 'MiB, highest resident size (orange line: the budget)', grid: true, zero: true },
    y: { type: 'band', label: null, domain: bars.map(({ what }) => what), padding: 0.3 },
    marks: [
      Plot.barX(bars, { x: 'mib', y: 'what', fill: FIRST, fillOpacity: 0.6 }),
      Plot.tickX(bars, { x: 'budget', y: 'what', stroke: SECOND, strokeWidth: 3 }),
      Plot.ruleX([0]),
    ],
  };
}
