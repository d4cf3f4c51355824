/**
 * Numbers and tables for people, and texts of foreign origin made safe for a terminal: names of VMs, paths in
 * manifests, what QEMU and agents in guests say. A terminal obeys control characters, and a line break lets
 * one text pass for two, so whatever is not plain text is written as its code. JSON needs none of this: it
 * has escapes of its own.
 */

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'] as const;

export function formatBytes(sizeBytes: number): string {
  let value = sizeBytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${UNITS[unit]!}`;
}

export function formatMs(ms: number): string {
  return ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

/** A length of time that people plan with: 0.2 s, 5 min, 1 h. */
export function formatInterval(ms: number): string {
  const seconds = ms / 1000;
  if (seconds < 120) return `${Number(seconds.toPrecision(2))} s`;
  return seconds < 7200
    ? `${Number((seconds / 60).toPrecision(2))} min`
    : `${Number((seconds / 3600).toPrecision(2))} h`;
}

/**
 * Controls of ASCII and Latin-1, line and paragraph separators, marks that turn the direction of text
 * (Unicode's bidirectional controls), characters without width, halves of surrogate pairs.
 */
const NOT_PLAIN =
  /[\0-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|\p{Cs}/gu;

/** One line, whatever it was. */
export function printable(text: string): string {
  return text.replace(NOT_PLAIN, (character) => {
    const code = character.codePointAt(0)!;
    if (character === '\n') return '\\n';
    if (character === '\t') return '\\t';
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u{${code.toString(16)}}`;
  });
}

/** Text that may have several lines: those after the first are indented, so that none stands for itself. */
export function printableLines(text: string, indent = '    '): string {
  return text
    .split('\n')
    .map((line) => printable(line.replace(/\r$/, '').replaceAll('\t', ' ')))
    .join(`\n${indent}`);
}

/** Columns aligned by their widest cell; numbers to the right. Cells are made printable. */
export function formatTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [header, ...rows].map((row) => row.map(printable));
  const widths = header.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)));
  const isNumeric = header.map(
    (_, column) => rows.length > 0 && rows.every((row) => /^[\d.,+-]/.test(row[column] ?? '')),
  );
  return all
    .map((row) =>
      row
        .map((cell, column) =>
          isNumeric[column] === true ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!),
        )
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
