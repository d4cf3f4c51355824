/**
 * Plots as SVG text, drawn without a browser. Colours are CSS variables with a value for light and for dark
 * backgrounds, chosen by the viewer (prefers-color-scheme), in a page as well as in an SVG file of its own.
 */

import * as Plot from '@observablehq/plot';
import { parseHTML } from 'linkedom';

export type PlotSettings = Plot.PlotOptions;

/** Series colours, told apart by people who see few colours as well. */
export const COLORS = ['var(--series-1)', 'var(--series-2)', 'var(--series-3)', 'var(--series-4)'] as const;

/** Definitions of the colours; for the head of a page, and inside each SVG file. */
export const COLOR_STYLE = `:root { color-scheme: light dark; --ink: #1d2430; --paper: #ffffff; --card: #f5f6f8; --quiet: #667085;
  --series-1: #1f6feb; --series-2: #d9730d; --series-3: #1a8f5c; --series-4: #8250df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --paper: #11151c; --card: #1a202b; --quiet: #98a2b3;
  --series-1: #6ea8fe; --series-2: #ffa657; --series-3: #56d39b; --series-4: #c297ff; } }`;

/**
 * Both packages are typed with a browser's types, which this project does not load. This is all of a browser
 * that is used.
 */
const openDocument = parseHTML as unknown as (html: string) => { readonly document: unknown };
const draw = Plot.plot as (settings: PlotSettings & { readonly document: unknown }) => {
  readonly outerHTML: string;
};

const WIDTH = 560;
const HEIGHT = 260;

/** An SVG element for a page that defines the colours. */
export function figure(settings: PlotSettings): string {
  const { document } = openDocument('<!doctype html><html><body></body></html>');
  const plot = draw({
    document,
    width: WIDTH,
    height: HEIGHT,
    marginLeft: 64,
    marginBottom: 40,
    style: { background: 'none', color: 'var(--ink)', fontSize: '11px' },
    ...settings,
  });
  return plot.outerHTML;
}

/** A file of its own, with background and colours inside. */
export function standAloneFigure(title: string, settings: PlotSettings): string {
  const svg = figure({ ...settings, title: undefined });
  const style = `<title>${escapeText(title)}</title><style>${COLOR_STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>`;
  return `${svg.replace(/<svg ([^>]*)>/, `<svg xmlns="http://www.w3.org/2000/svg" $1>${style}`)}\n`;
}

export function escapeText(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
