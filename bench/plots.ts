/**
 * The plots of docs/performance.md and docs/performance-rows.md, from the results: SVG files in docs/plots, readable on light and dark
 * backgrounds.
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import * as Plot from '@observablehq/plot';

import { COLORS, standAloneFigure, type PlotSettings } from '../src/study/figure.js';
import { questionPlots } from './question-plots.js';
import { QUESTIONS } from './questions.js';
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

const [FIRST, SECOND, THIRD] = COLORS;

export interface WrittenPlots {
  /** Markdown that shows an area's rows against their peers. */
  readonly byArea: ReadonlyMap<BenchArea, string>;
  /** Names of those that questions are answered with. */
  readonly ofQuestions: ReadonlySet<string>;
}

/** Writes the plots that the rows suffice for. */
export function writePlots(root: string, rows: readonly BenchRow[]): WrittenPlots {
  const folder = join(root, 'docs', FOLDER);
  mkdirSync(folder, { recursive: true });
  const write = (name: string, title: string, settings: PlotSettings): void =>
    writeFileSync(join(folder, `${name}.svg`), standAloneFigure(title, settings));
  const byArea = new Map<BenchArea, string>();
  for (const area of new Set(rows.map((row) => row.area))) {
    const settings = ratios(rows.filter((row) => row.area === area));
    if (settings === undefined) continue;
    const [name, title] = [`${area}-ratios`, AREA_TITLE[area]];
    write(name, title, settings);
    byArea.set(area, `![${title}](${FOLDER}/${name}.svg)\n\n`);
  }
  const ofQuestions = questionPlots(rows);
  for (const { plot, plotTitle } of QUESTIONS) {
    const settings = ofQuestions.get(plot);
    if (settings !== undefined) write(plot, plotTitle, settings);
  }
  return { byArea, ofQuestions: new Set(ofQuestions.keys()) };
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
