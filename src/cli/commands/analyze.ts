import { existsSync } from 'node:fs';
import { open } from 'node:fs/promises';

import type { Command } from 'commander';

import { analyze, type Analysis } from '../../study/analysis.js';
import { openLiveSubject } from '../../study/live-subject.js';
import { openRepositorySubject } from '../../study/repository-subject.js';
import type { Subject } from '../../study/subject.js';
import { openTraceSubject } from '../../study/trace-subject.js';
import { defaultRuntimeDir, openRuntimeDir } from '../../host/runtime-dir.js';
import { CheckpointError, systemErrorCode } from '../../errors.js';
import { formatBytes, formatInterval, formatMs, printable } from '../../text.js';
import { hypervisors } from '../../index.js';
import { command, run, type CommandContext, type SharedOptions } from '../command.js';
import { positiveNumber, secondsForTimer, wholeNumber } from '../parse.js';

interface Options extends SharedOptions {
  readonly name?: string;
  readonly epoch: number;
  readonly epochs: number;
  readonly tracker: string;
  readonly perDay?: number;
  readonly out?: string;
}

/** Contents kept of an epoch: 4 MiB before, 4 MiB after. */
const MAX_CONTENT_PAGES = 1024;

export function analyzeCommand(): Command {
  return command(
    'analyze',
    'study what a VM writes, and what interval, budget and level of compression suit it',
    [
      'cairn analyze qmp:/run/web1.qmp --epoch 1 --epochs 30 --out web1.html',
      'cairn analyze web1.trace --json',
      'cairn analyze --repo /srv/cairn --name web1 --out web1.html',
    ],
  )
    .argument(
      '[subject]',
      'address of a running VM, or path of a trace; without one, a chain of the repository',
    )
    .option('--name <name>', 'the chain of the repository (default: that of its newest checkpoint)')
    .option('--epoch <seconds>', 'how long a running VM runs between two looks', secondsForTimer, 0.5)
    .option(
      '--epochs <n>',
      'how many such epochs of a running VM, or how many of the newest increments of a chain',
      wholeNumber(1),
      32,
    )
    .option('--tracker <kind>', 'dirty tracker to use on a running VM', 'auto')
    .option('--per-day <GiB>', 'what a day of checkpoints may store, for the advice', positiveNumber)
    .option('--out <file>', 'write a report with plots to this new HTML file')
    .action((subject: string | undefined, options: Options) =>
      run(options, async (context) => {
        const { reporter } = context;
        const opened = await openSubject(subject, options, context);
        let analysis: Analysis;
        try {
          analysis = await analyze(
            opened.subject,
            { mostBytesPerDay: options.perDay === undefined ? undefined : options.perDay * 2 ** 30 },
            (done) => reporter.progress({ task: 'epochs', done, total: options.epochs, unit: 'epochs' }),
          );
        } finally {
          await opened.close();
        }
        if (options.out !== undefined) {
          // The plotting library takes longer to load than all the rest of Cairn: only where it is used.
          const { reportOf } = await import('../../study/report.js');
          await writeNew(options.out, reportOf(analysis));
        }
        reporter.summary(
          { ...analysis, ...(options.out === undefined ? {} : { report: options.out }) },
          textOf(analysis, options.out),
        );
        return undefined;
      }),
    );
}

async function openSubject(
  given: string | undefined,
  options: Options,
  { signal, openRepository }: CommandContext,
): Promise<{ readonly subject: Subject; readonly close: () => Promise<void> }> {
  const limits = { epochs: options.epochs, maxContentPages: MAX_CONTENT_PAGES, signal };
  if (given === undefined) {
    const subject = await openRepositorySubject(await openRepository(), options.name, limits);
    return { subject, close: () => Promise.resolve() };
  }
  if (existsSync(given)) {
    const subject = openTraceSubject(given);
    return { subject, close: () => subject.close() };
  }
  const runtimeDir = await openRuntimeDir(defaultRuntimeDir());
  const vm = await hypervisors().forAddress(given).attach(given, { runtimeDir, signal });
  try {
    const subject = await openLiveSubject(vm, {
      ...limits,
      epochMs: options.epoch * 1000,
      tracker: options.tracker,
      runtimeDir,
    });
    return {
      subject,
      close: async () => {
        await subject.close();
        await vm.close();
      },
    };
  } catch (error) {
    await vm.close();
    throw error;
  }
}

/** 0600: it speaks of a VM's behaviour, though not of what its memory holds. @throws EXPORT_EXISTS */
async function writeNew(path: string, text: string): Promise<void> {
  try {
    const file = await open(path, 'wx', 0o600);
    await file.writeFile(text);
    await file.close();
  } catch (error) {
    if (systemErrorCode(error) !== 'EEXIST') throw error;
    throw new CheckpointError('EXPORT_EXISTS', `${path} exists already`, {
      hint: 'name a file that does not exist',
    });
  }
}

function textOf({ subject, statistics, advice }: Analysis, out: string | undefined): string {
  const { interval } = advice;
  return [
    `${printable(subject.name)}: ${statistics.epochs.length} epochs of ${formatInterval(subject.epochMs)}, ${statistics.distinctPages} distinct dirty pages, ` +
      `${Math.round(statistics.meanChangedBytes)} changed bytes in a dirty page`,
    interval === undefined
      ? 'no interval that was looked at keeps the bounds: see the report'
      : `a checkpoint every ${formatInterval(interval.intervalMs)}, --cache ${Math.ceil(advice.budgetBytes / 2 ** 20)} --compression ${advice.level}: ` +
        `about ${formatMs(interval.pauseMs)} of pause, ${(interval.slowDown * 100).toPrecision(2)} % of the guest's time, ` +
        `${formatBytes(interval.storedBytesPerDay)} a day`,
    ...(out === undefined ? ['--out FILE.html writes the plots'] : [`report: ${out}`]),
  ].join('\n');
}
