import { Writable } from 'node:stream';

import { afterEach, describe, expect, it, jest } from '@jest/globals';

import { planText } from '../../src/cli/ask-trust.js';
import { checkpointText } from '../../src/cli/checkpoint-text.js';
import { TextReporter } from '../../src/cli/reporter.js';
import { CheckpointError } from '../../src/errors.js';
import { formatTable, printable, printableLines } from '../../src/text.js';

/** Clears the screen, sets the title, hides what follows, turns text around. */
const HOSTILE = 'web1\x1b[2J\x1b]0;owned\x07\ncairn: all is well\r\x9b31m\u202etxt.exe\u2028';

const UNSAFE = /[\0-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]/;

function written(write: (reporter: TextReporter) => void): string {
  let text = '';
  const take = (chunk: unknown): true => {
    text += String(chunk);
    return true;
  };
  const error = jest.spyOn(process.stderr, 'write').mockImplementation(take);
  try {
    const results = new Writable({
      write: (chunk, _, done) => {
        take(chunk);
        done();
      },
    });
    write(new TextReporter(results));
  } finally {
    error.mockRestore();
  }
  return text;
}

afterEach(() => {
  jest.restoreAllMocks();
});

describe('a name out of a hostile manifest', () => {
  it('is one line of plain text', () => {
    expect(printable(HOSTILE)).toBe(
      'web1\\x1b[2J\\x1b]0;owned\\x07\\ncairn: all is well\\x0d\\x9b31m\\u{202e}txt.exe\\u{2028}',
    );
    expect(printable('Größe 大 🙂')).toBe('Größe 大 🙂');
  });

  it('stays in its cell of a table', () => {
    const table = formatTable(
      ['id', 'vm'],
      [
        ['1', HOSTILE],
        ['2', 'x'],
      ],
    );
    expect(table.split('\n')).toHaveLength(3);
    expect(table).not.toMatch(UNSAFE);
  });

  it('stays in its line of a summary', () => {
    const summary = { checkpointId: '1', kind: 'base', compareReason: HOSTILE, vmName: HOSTILE } as never;
    const text = checkpointText(Object.assign({ pauseMs: 1, totalMs: 1, rounds: 0, frozenMs: 0 }, summary));
    expect(text).not.toMatch(UNSAFE);
    expect(text.split('\n').some((line) => line.startsWith('cairn:'))).toBe(false);
  });

  it('stays in its argument when somebody is asked to trust it', () => {
    const text = planText({ commands: [[HOSTILE, '-name', HOSTILE]], details: [HOSTILE], disks: [HOSTILE] });
    expect(text).not.toMatch(UNSAFE);
    expect(text.split('\n')).toHaveLength(6);
  });
});

describe('what a hostile QEMU says', () => {
  it('cannot pass for a message of ours', () => {
    const text = written((reporter) => {
      reporter.error(
        new CheckpointError('QMP_COMMAND', HOSTILE, { cause: new Error(HOSTILE), hint: HOSTILE }),
      );
      reporter.warning(HOSTILE);
    });
    expect(text).not.toMatch(UNSAFE);
    expect(text.split('\n').filter((line) => line.startsWith('cairn: all'))).toEqual([]);
    expect(text.split('\n').filter((line) => line.startsWith('cairn: '))).toHaveLength(1);
  });

  it('keeps its lines where it may have several, indented', () => {
    expect(printableLines('it wrote:\r\nqemu: one\n\x1b[1mtwo')).toBe(
      'it wrote:\n    qemu: one\n    \\x1b[1mtwo',
    );
  });

  it('has no controls left in a summary, whoever made its text', () => {
    expect(written((reporter) => reporter.summary({}, `a\x1b[2J\nb`))).toBe('a\\x1b[2J\nb\n');
  });
});
