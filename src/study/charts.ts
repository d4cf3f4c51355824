/** The plots of a report, each a titled SVG. */

import * as Plot from '@observablehq/plot';

import { formatBytes } from '../text.js';
import { COLORS, figure } from './figure.js';
import type { Analysis } from './analysis.js';
import type { Bin } from './histogram.js';

export interface Chart {
  readonly title: string;
  readonly svg: string;
  /** How to read it. */
  readonly note: string;
}

const [FIRST, SECOND, THIRD] = COLORS;

export function chartsOf(analysis: Analysis): readonly Chart[] {
  const { statistics } = analysis;
  return [
    overTime(analysis),
    bars('Changed bytes of a dirty page', statistics.changedBytesPerPage, 'bytes changed', 'dirty pages', {
      note: 'A page-granular increment stores 4096 bytes for each of them. 0: written with what it held before.',
    }),
    positions(analysis),
    bars('Length of a changed stretch in a page', statistics.changeRunBytes, 'bytes', 'stretches', {
      note: 'Short stretches, far apart, are what a byte-granular delta gains from.',
    }),
    bars('Neighbouring dirty pages', statistics.pageRuns, 'pages in a row', 'runs', {
      note: 'Long runs make the scan of the bitmap and the copy cheap.',
    }),
    bars('Epochs until a page is dirty again', statistics.reDirtyEpochs, 'epochs', 'pages', {
      note: `${statistics.firstTimePages} pages were dirty for the first time and are not in the plot.`,
    }),
    intervals(analysis),
    budgets(analysis),
    codecs(analysis),
  ];
}

function overTime({ statistics }: Analysis): Chart {
  const points = statistics.epochs.map(({ endMs, dirtyPages, contentPages, changedPages }) => ({
    seconds: endMs / 1000,
    dirtyPages,
    changedPages: contentPages === 0 ? 0 : (dirtyPages * changedPages) / contentPages,
  }));
  return {
    title: 'Dirty pages over time',
    note: 'Upper line: pages written in an epoch. Lower line: those that hold something else afterwards.',
    svg: figure({
      x: { label: 'running time, s' },
      y: { label: 'pages an epoch', grid: true, zero: true },
      marks: [
        Plot.ruleY([0]),
        Plot.lineY(points, { x: 'seconds', y: 'dirtyPages', stroke: FIRST, strokeWidth: 2 }),
        Plot.dot(points, { x: 'seconds', y: 'dirtyPages', fill: FIRST, r: 2.5 }),
        Plot.lineY(points, { x: 'seconds', y: 'changedPages', stroke: SECOND, strokeWidth: 2 }),
      ],
    }),
  };
}

function bars(
  title: string,
  bins: readonly Bin[],
  xLabel: string,
  yLabel: string,
  { note }: { readonly note: string },
): Chart {
  const labelled = bins
    .filter(({ count }, i) => count > 0 || i > 0)
    .map(({ from, to, count }) => ({ label: from === to ? `${from}` : `${from}-${to}`, count }));
  return {
    title,
    note,
    svg: figure({
      x: { type: 'band', label: xLabel, domain: labelled.map(({ label }) => label), tickRotate: -30 },
      y: { label: yLabel, grid: true, tickFormat: 's' },
      marginBottom: 60,
      marks: [Plot.ruleY([0]), Plot.barY(labelled, { x: 'label', y: 'count', fill: FIRST })],
    }),
  };
}

function positions({ statistics }: Analysis): Chart {
  const places = statistics.positions.map((share, i) => ({
    from: i * 64,
    to: (i + 1) * 64,
    share: share * 100,
  }));
  return {
    title: 'Where in the page it changes',
    note: 'Share of dirty pages with a change in each stretch of 64 bytes.',
    svg: figure({
      x: { label: 'offset in the page, bytes', domain: [0, 4096] },
      y: { label: '% of dirty pages', grid: true },
      marks: [
        Plot.ruleY([0]),
        Plot.rectY(places, { x1: 'from', x2: 'to', y: 'share', fill: THIRD, inset: 0.5 }),
      ],
    }),
  };
}

function intervals({ advice }: Analysis): Chart {
  const points = advice.intervals.map((interval) => ({
    seconds: interval.intervalMs / 1000,
    gibPerDay: interval.storedBytesPerDay / 2 ** 30,
    kind: interval.extrapolated ? 'extrapolated' : 'measured',
  }));
  const chosen = points.filter(({ seconds }) => seconds === (advice.interval?.intervalMs ?? 0) / 1000);
  return {
    title: 'What a day of checkpoints stores',
    note: 'Filled: measured by joining epochs. Hollow: extrapolated. Ring: the interval recommended below.',
    svg: figure({
      x: { type: 'log', label: 'interval, s', tickFormat: '~s' },
      y: { type: 'log', label: 'GiB a day', grid: true, tickFormat: '~s' },
      marks: [
        Plot.line(points, { x: 'seconds', y: 'gibPerDay', stroke: FIRST }),
        Plot.dot(points, {
          x: 'seconds',
          y: 'gibPerDay',
          stroke: FIRST,
          fill: (point: { kind: string }) => (point.kind === 'measured' ? FIRST : 'var(--card)'),
          r: 4,
        }),
        Plot.dot(chosen, { x: 'seconds', y: 'gibPerDay', stroke: SECOND, strokeWidth: 3, r: 9 }),
      ],
    }),
  };
}

function budgets({ budgets: figures }: Analysis): Chart {
  const points = figures.map(({ budgetBytes, hitShare }) => ({
    budget: formatBytes(budgetBytes),
    share: hitShare * 100,
  }));
  return {
    title: 'Previous versions kept in memory',
    note: 'Share of pages, dirty before, whose previous version a budget of that size would still hold.',
    svg: figure({
      x: { type: 'band', label: '--cache', domain: points.map(({ budget }) => budget) },
      y: { label: '%', domain: [0, 100], grid: true },
      marks: [Plot.ruleY([0]), Plot.barY(points, { x: 'budget', y: 'share', fill: FIRST })],
    }),
  };
}

function codecs({ codecs: figures }: Analysis): Chart {
  const rows = figures.map(({ name, storedBytes, rawBytes }) => ({
    name,
    percent: rawBytes === 0 ? 0 : (storedBytes / rawBytes) * 100,
  }));
  return {
    title: 'Stored size of the same dirty pages',
    note: 'In percent of whole pages. Lower levels are faster.',
    svg: figure({
      x: { label: '% of whole pages', grid: true },
      y: { type: 'band', label: null, domain: rows.map(({ name }) => name) },
      marginLeft: 130,
      marks: [
        Plot.ruleX([0]),
        Plot.barX(rows, { x: 'percent', y: 'name', fill: FIRST }),
        Plot.text(rows, {
          x: 'percent',
          y: 'name',
          text: (row: { percent: number }) => `${row.percent.toPrecision(3)} %`,
          textAnchor: 'start',
          dx: 4,
          fill: 'var(--ink)',
        }),
      ],
      marginRight: 60,
    }),
  };
}
