/** The plots of docs/performance.md, from the results: SVG files beside it, readable on light and dark backgrounds. */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import * as Plot from '@observablehq/plot';

import { COLORS, standAloneFigure, type PlotSettings } from '../src/study/figure.js';
import type { BenchArea, BenchRow } from './rows.js';

/** Where they lie, below docs. */
const FOLDER = 'plots';

const AREA_TITLE: Readonly<Record<BenchArea, string>> = {
  scan: 'Scan of the bitmap: time against each peer',
  'delta-size': 'Stored bytes against each peer',
  'delta-speed': 'Encode and decode: speed against each peer',
  pause: 'Pause and whole time against each peer',
  'checkpoint-time': 'Whole time of a checkpoint against a full save',
  'slow-down': 'Work done in the guest against no checkpoints',
  memory: 'Memory of Cairn',
  chain: 'Reading from long chains',
  growth: 'Growing guests, same writes',
  xen: 'On Xen, against its own save',
};

const [FIRST, SECOND, THIRD, FOURTH] = COLORS;

/** Writes the plots that the rows suffice for. @returns Markdown that shows them, by area */
export function writePlots(root: string, rows: readonly BenchRow[]): ReadonlyMap<BenchArea, string> {
  const folder = join(root, 'docs', FOLDER);
  mkdirSync(folder, { recursive: true });
  const shown = new Map<BenchArea, string>();
  const show = (area: BenchArea, name: string, title: string, settings: PlotSettings | undefined): void => {
    if (settings === undefined) return;
    writeFileSync(join(folder, `${name}.svg`), standAloneFigure(title, settings));
    shown.set(area, `${shown.get(area) ?? ''}![${title}](${FOLDER}/${name}.svg)\n\n`);
  };
  for (const area of new Set(rows.map((row) => row.area))) {
    const own = rows.filter((row) => row.area === area);
    show(area, `${area}-ratios`, AREA_TITLE[area], ratios(own));
  }
  show('pause', 'pause-by-dirty-set', 'Pause by dirty set and guest size', pauseBySize(rows));
  show('growth', 'growth-by-size', 'An increment as the guest grows', growthBySize(rows));
  return shown;
}

/** One dot a row, by peer and what was measured; the line is the peer. */
function ratios(rows: readonly BenchRow[]): PlotSettings | undefined {
  const points = rows.flatMap(({ name, peer, ratio, goal, met }) =>
    ratio === null || ratio <= 0
      ? []
      : [
          {
            peer: shortened(`${peer} · ${withoutFigures(name)}`),
            ratio,
            state: goal === '' ? 'no goal' : met === true ? 'met' : 'missed',
          },
        ],
  );
  if (points.length === 0) return undefined;
  const peers = [...new Set(points.map(({ peer }) => peer))];
  const colorOf: Readonly<Record<string, string>> = { met: THIRD, missed: SECOND, 'no goal': FIRST };
  return {
    width: 760,
    height: 60 + peers.length * 22,
    marginLeft: 400,
    marginRight: 24,
    x: {
      type: 'log',
      label: 'Cairn / peer (green: goal met, orange: missed, blue: no goal)',
      grid: true,
      tickFormat: '~g',
    },
    y: { type: 'band', label: null, domain: peers },
    marks: [
      Plot.ruleX([1], { stroke: 'var(--ink)', strokeWidth: 1.5 }),
      Plot.dot(points, {
        x: 'ratio',
        y: 'peer',
        fill: (point: { state: string }) => colorOf[point.state],
        fillOpacity: 0.75,
        r: 4,
      }),
    ],
  };
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

/** Rows that differ in a size only belong to one line of the plot. */
function withoutFigures(name: string): string {
  return name.replace(
    /, (?:chain of \d+|\d+ GiB guest|a checkpoint every .*|harvested every .*|budget .*)$/,
    '',
  );
}

function shortened(text: string): string {
  return text.length > 66 ? `${text.slice(0, 65)}…` : text;
}
