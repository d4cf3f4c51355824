/** An analysis as one HTML file that needs nothing else: no script, no font, no address. */

import { formatBytes, formatInterval, formatMs } from '../text.js';
import { COLOR_STYLE, escapeText } from './figure.js';
import type { IntervalCost } from './advice.js';
import type { Analysis } from './analysis.js';
import { chartsOf } from './charts.js';

const STYLE = `${COLOR_STYLE}
body { margin: 0 auto; padding: 2rem 1.5rem; max-width: 1200px; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .75rem; } h3 { font-size: .95rem; margin: 0 0 .5rem; }
p { margin: .3rem 0; } .quiet { color: var(--quiet); font-size: .85rem; } code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .75rem; margin-top: 1.25rem; }
.tile, figure, .advice { background: var(--card); border-radius: 8px; padding: .9rem 1.1rem; margin: 0; }
.tile strong { display: block; font-size: 1.35rem; } .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: .75rem; }
figure svg { width: 100%; height: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid color-mix(in srgb, var(--quiet) 30%, transparent); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--quiet); } .wide { overflow-x: auto; }
tr.chosen td { font-weight: 700; color: var(--series-2); }`;

const KIND = { vm: 'running VM', trace: 'trace', repository: 'chain of a repository' } as const;

export function reportOf(analysis: Analysis): string {
  const { subject, statistics } = analysis;
  const title = `Dirty pages of ${subject.name}`;
  const perEpoch = mean(statistics.epochs.map(({ dirtyPages }) => dirtyPages));
  const runMs = statistics.epochs.at(-1)?.endMs ?? 0;
  const tiles: readonly (readonly [string, string])[] = [
    ['memory', formatBytes(subject.memoryBytes)],
    ['looked at', `${statistics.epochs.length} epochs, ${formatInterval(runMs)}`],
    ['dirty pages an epoch', round(perEpoch)],
    ['distinct dirty pages', `${statistics.distinctPages} (${formatBytes(statistics.distinctPages * 4096)})`],
    ['changed bytes of a dirty page', `${round(statistics.meanChangedBytes)} of 4096`],
  ];
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeText(title)}</title><style>${STYLE}</style></head><body>
<h1>${escapeText(title)}</h1>
<p class="quiet">${KIND[subject.kind]}, epochs of ${formatInterval(subject.epochMs)}</p>
<div class="tiles">${tiles.map(([name, value]) => `<div class="tile"><span class="quiet">${name}</span><strong>${value}</strong></div>`).join('')}</div>
<h2>What suits it</h2>
${adviceSection(analysis)}
<h2>What it writes</h2>
<div class="charts">${chartsOf(analysis)
    .map(
      ({ title: name, svg, note }) =>
        `<figure><h3>${escapeText(name)}</h3>${svg}<p class="quiet">${escapeText(note)}</p></figure>`,
    )
    .join('\n')}</div>
</body></html>
`;
}

function adviceSection({ advice, subject }: Analysis): string {
  const { interval } = advice;
  const first =
    interval === undefined
      ? '<p>No interval that was looked at keeps the bounds below: take a longer one, or allow more.</p>'
      : `<p><strong>A checkpoint every ${formatInterval(interval.intervalMs)}</strong>, <code>--cache ${Math.ceil(advice.budgetBytes / 2 ** 20)}</code>, ` +
        `<code>--compression ${advice.level}</code>: a pause of about ${formatMs(interval.pauseMs)}, ${percent(interval.slowDown)} of the guest's time, ` +
        `${formatBytes(interval.storedBytesPerDay)} a day (${round(interval.storedBytesPerDay / subject.memoryBytes)} times its memory).</p>`;
  return `<div class="advice">${first}
<div class="wide"><table><tr><th>interval</th><th>dirty pages</th><th>stored</th><th>pause, about</th><th>guest loses, about</th><th>stored a day</th></tr>
${advice.intervals.map((row) => intervalRow(row, row === interval)).join('\n')}</table></div>
${advice.reasons.map((reason) => `<p class="quiet">${escapeText(reason)}</p>`).join('')}</div>`;
}

function intervalRow(row: IntervalCost, isChosen: boolean): string {
  const cells = [
    `${formatInterval(row.intervalMs)}${row.extrapolated ? ' (extrapolated)' : ''}`,
    round(row.dirtyPages),
    formatBytes(row.storedBytes),
    formatMs(row.pauseMs),
    percent(row.slowDown),
    formatBytes(row.storedBytesPerDay),
  ];
  return `<tr${isChosen ? ' class="chosen"' : ''}>${cells.map((cell) => `<td>${cell}</td>`).join('')}</tr>`;
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}

function round(value: number): string {
  return value >= 100 ? `${Math.round(value)}` : value.toPrecision(3);
}

function percent(share: number): string {
  return `${(share * 100).toPrecision(2)} %`;
}
