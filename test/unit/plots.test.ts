import * as Plot from '@observablehq/plot';
import { describe, expect, it } from '@jest/globals';

import { escapeText, figure, standAloneFigure } from '../../src/study/figure.js';

const settings = { marks: [Plot.dot([[1, 2]], { fill: 'var(--series-1)' })] };

describe('a plot', () => {
  it('takes its colours from the page that it is put in', () => {
    const svg = figure(settings);
    expect(svg).toMatch(/^<svg [^>]*viewBox/);
    expect(svg).toContain('var(--series-1)');
    expect(svg).not.toContain('prefers-color-scheme');
  });

  it('brings them along as a file of its own, with a title and for light and dark', () => {
    const svg = standAloneFigure('one < two & "three"', settings);
    expect(svg).toContain('xmlns="http://www.w3.org/2000/svg"');
    expect(svg).toContain(`<title>${escapeText('one < two & "three"')}</title>`);
    expect(svg).toContain('@media (prefers-color-scheme: dark)');
    expect(svg).not.toContain('one < two');
  });
});
