/**
 * The page that docs/performance.md opens with: what an operator asks, answered by a plot and a sentence or two. Every figure comes out of
 * the results; a sentence whose rows were not measured is left out.
 */

import { findRow, own, peers, readable, sayOf, wrapped } from './figures.js';
import type { BenchArea, BenchRow } from './rows.js';

export interface Question {
  readonly title: string;
  /** Of its plot, a file in docs/plots. */
  readonly plot: string;
  readonly plotTitle: string;
  /** Whose goals are counted below the answer. */
  readonly areas: readonly BenchArea[];
  /** Sentences; empty ones are left out. */
  readonly answer: (rows: readonly BenchRow[]) => readonly string[];
}

export const QUESTIONS: readonly Question[] = [
  {
    title: 'How long does the guest stand still?',
    plot: 'pause-by-dirty-set',
    plotTitle: 'Pause by dirty set and guest size',
    areas: ['pause'],
    answer: pauseAnswer,
  },
  {
    title: 'What does a checkpoint cost in time?',
    plot: 'time-by-workload',
    plotTitle: 'Time of a checkpoint until it is durable',
    areas: ['checkpoint-time'],
    answer: timeAnswer,
  },
  {
    title: 'What does it cost in bytes?',
    plot: 'bytes-by-trace',
    plotTitle: 'Stored bytes of a checkpoint by workload',
    areas: ['delta-size'],
    answer: bytesAnswer,
  },
  {
    title: 'What does the guest lose?',
    plot: 'slow-down-by-workload',
    plotTitle: 'Work of the guest that checkpoints take away',
    areas: ['slow-down'],
    answer: slowDownAnswer,
  },
  {
    title: "How does it grow with the guest's memory?",
    plot: 'growth-by-size',
    plotTitle: 'An increment as the guest grows',
    areas: ['growth'],
    answer: growthAnswer,
  },
  {
    title: 'How does it grow with the length of the chain?',
    plot: 'chain-by-length',
    plotTitle: 'Reading a checkpoint from a long chain',
    areas: ['chain'],
    answer: chainAnswer,
  },
  {
    title: 'How much memory does Cairn take?',
    plot: 'memory-by-budget',
    plotTitle: 'Memory of a watcher by budget',
    areas: ['memory'],
    answer: memoryAnswer,
  },
];

/** Markdown. @param plots names of the plots that could be drawn */
export function frontPage(rows: readonly BenchRow[], plots: ReadonlySet<string>): string {
  return QUESTIONS.flatMap((question) => {
    const answer = question.answer(rows).filter((sentence) => sentence !== '');
    if (answer.length === 0) return [];
    const image = `![${question.plotTitle}](plots/${question.plot}.svg)`;
    return [
      [
        `## ${question.title}`,
        ...(plots.has(question.plot) ? [`${image}\n`] : []),
        wrapped([...answer, goalCount(rows, question.areas)].join(' ')),
      ].join('\n'),
    ];
  }).join('\n\n');
}

/** So that a sentence about a good figure does not hide the goals that were missed. */
function goalCount(rows: readonly BenchRow[], areas: readonly BenchArea[]): string {
  const goals = rows.filter(({ area, met }) => areas.includes(area) && met !== null);
  const met = goals.filter((row) => row.met === true).length;
  return `Goals of the rows behind this: ${met} met, ${goals.length - met} missed.`;
}

function pauseAnswer(rows: readonly BenchRow[]): readonly string[] {
  const area = 'pause';
  const workload = '1 GiB guest, 18 MiB rewritten between checkpoints';
  const inTurns = '1 GiB guest, 18 MiB rewritten in between, QEMU 7.2';
  const against = (peer: string) =>
    findRow(rows, { area, name: 'pause, p50', workload: inTurns, peer: `QEMU ${peer}` });
  return [
    sayOf(
      [
        findRow(rows, { area, name: 'increments measured', workload }),
        findRow(rows, {
          area,
          name: 'increment, p50',
          workload,
          peer: 'floor: stop, device state, cont, one copy',
        }),
        findRow(rows, { area, name: 'increment, p99', workload }),
        findRow(rows, { area, name: 'increment, longest', workload }),
      ],
      (count, p50, p99, longest) =>
        `Half of ${count.value} increments of a 1 GiB guest, 18 MiB rewritten before each, stopped it for at most ` +
        `**${own(p50)}**, 99 % for at most ${own(p99)}, and the longest for ${own(longest)}; the stop alone, with ` +
        `device state and one copy of as many bytes, takes ${peers(p50)} (grey in the plot).`,
    ),
    sayOf(
      [against('savevm'), against('migrate to a file, stopped'), against('background-snapshot to a file')],
      (savevm, stopped, background) =>
        `Where both took turns, Cairn stopped that guest for ${own(savevm)}, QEMU's \`savevm\` for ${peers(savevm)}, its migration to a ` +
        `file with the guest stopped for ${peers(stopped)}, and its \`background-snapshot\` for ${peers(background)}.`,
    ),
  ];
}

/** Ends the name of a workload that says more than it does, until it writes fresh data each time. */
export const SAME_RANDOM_DATA = 'rewritten with other random data';

function timeAnswer(rows: readonly BenchRow[]): readonly string[] {
  const area = 'checkpoint-time';
  const durable = 'QEMU migrate to a file, durable';
  const increments = (size: string) =>
    rows
      .filter((row) => row.area === area && row.name === 'increment, total, durable' && row.peer === durable)
      .filter(({ workload }) => workload.startsWith(`${size} guest`) && !workload.endsWith(SAME_RANDOM_DATA))
      .sort((a, b) => a.value - b.value);
  const ofSize = (size: string): string => {
    const found = increments(size);
    return sayOf(
      [found[0], found.at(-1)],
      (fastest, slowest) =>
        `Increments of a ${size} guest were durable after **${own(fastest)}** to **${own(slowest)}**, depending on what it does; ` +
        `QEMU's own migration to a file took ${peers(slowest)}.`,
    );
  };
  const workload = 'libvirt domain, 1 GiB, scattered small writes and runs of 64 KiB for 1 s';
  return [
    ofSize('1 GiB'),
    ofSize('4 GiB'),
    sayOf(
      [rows.find((row) => row.area === area && row.workload.endsWith(SAME_RANDOM_DATA))],
      () =>
        `The workload "${SAME_RANDOM_DATA}" of the rows is left out here: it repeats the data of one seed, so it does not ` +
        'show the cost of data that is new.',
    ),
    sayOf(
      [findRow(rows, { area, name: 'base, total, durable (the VM runs)', workload: '1 GiB guest' })],
      (base) =>
        `The first checkpoint of 1 GiB, a base, took ${own(base)} while the guest ran, and QEMU's migration, ` +
        `with the guest stopped, ${peers(base)}.`,
    ),
    sayOf(
      [
        findRow(rows, {
          area,
          name: 'increment of cairn watch, total, durable (total_ms), the domain runs on',
          workload,
        }),
        findRow(rows, {
          area,
          name: 'increment of cairn checkpoint, the whole command, start of Node.js and attaching included',
          workload,
        }),
      ],
      (watch, command) =>
        `Of a libvirt domain an increment by \`cairn watch\` took ${own(watch)}, one \`cairn checkpoint\` as a whole command ` +
        `${own(command)}, and \`virsh save\`, which ends the domain, ${peers(watch)}.`,
    ),
  ];
}

function bytesAnswer(rows: readonly BenchRow[]): readonly string[] {
  const area = 'delta-size';
  const name = 'stored per checkpoint';
  const traces = (peer: string) =>
    rows.filter((row) => row.area === area && row.name === name && row.peer === peer);
  const whole = traces('whole pages').filter(({ unit }) => unit === 'bytes');
  const patched = traces('zstd -3 --patch-from');
  const sum = (values: readonly number[]): number => values.reduce((all, value) => all + value, 0);
  const share = sum(whole.map(({ value }) => value)) / sum(whole.map(({ peer_value }) => peer_value ?? 0));
  return [
    sayOf(
      [findRow(rows, { area, name: `${name}, median of the workloads`, workload: 'all traces' }), whole[0]],
      (median) =>
        `A checkpoint stores **${own(median)}** of its dirty pages (median of ${whole.length} recorded traces), ` +
        `**${readable(share * 100, '%')}** when all traces are added up, since few of them write most.`,
    ),
    sayOf(
      [patched.toSorted((a, b) => (a.ratio ?? 0) - (b.ratio ?? 0)).at(-1)],
      (worst) =>
        `On ${patched.filter(({ met }) => met === false).length} of ${patched.length} traces \`zstd -3 --patch-from\` stores less ` +
        `than Cairn (\`${worst.workload.split(' (')[0]!}\`: ${peers(worst)}, Cairn ${own(worst)}). The replay keeps all pages in one ` +
        'share; the product has a share for each worker, and stores more.',
    ),
  ];
}

function slowDownAnswer(rows: readonly BenchRow[]): readonly string[] {
  const area = 'slow-down';
  const every = (interval: string) =>
    rows.find(
      (row) =>
        row.area === area &&
        row.name === `operations per second lost, a checkpoint every ${interval}` &&
        row.workload.startsWith('median of'),
    );
  const single = (interval: string) =>
    rows
      .filter(
        (row) => row.area === area && row.name === `operations per second, a checkpoint every ${interval}`,
      )
      .sort((a, b) => (a.ratio ?? 1) - (b.ratio ?? 1));
  const lost = (row: BenchRow): string => readable((1 - (row.ratio ?? 1)) * 100, '%');
  return [
    sayOf(
      [every('1 s'), every('0.2 s'), single('1 s')[0]],
      (second, fifth, worst) =>
        `A checkpoint each second takes **${own(second)}** of the guest's work (${second.workload}; ${worst.workload} lost ` +
        `most, ${lost(worst)}), one each 0.2 s ${own(fifth)}.`,
    ),
    sayOf(
      [single('10 s')[0], single('10 s').at(-1)],
      (worst, best) =>
        `With one each 10 s single workloads lie between ${lost(worst)} less and ${lost(best).replace('-', '')} more than ` +
        'without Cairn: that is the noise of this machine, and no cost can be told from it.',
    ),
  ];
}

function growthAnswer(rows: readonly BenchRow[]): readonly string[] {
  const sizes = (what: string) =>
    rows.filter((row) => row.area === 'growth' && row.name.startsWith(`increment, ${what}, `));
  const gib = ({ name }: BenchRow): string => /(\d+ GiB) guest$/.exec(name)?.[1] ?? name;
  return [
    sayOf(
      [sizes('total')[0], sizes('total').at(-1), sizes('pause')[0], sizes('pause').at(-1)],
      (small, large, pauseSmall, pauseLarge) =>
        `With ${small.workload}, an increment takes ${own(small)} at ${gib(small)} and **${own(large)}** at ${gib(large)}; ` +
        `the pause grows from ${own(pauseSmall)} to **${own(pauseLarge)}**.`,
    ),
  ];
}

/** Checkpoints in the longest chain of `chain-loads`. */
const LOADED_LENGTH = 100;

function chainAnswer(rows: readonly BenchRow[]): readonly string[] {
  const lengths = (what: string) =>
    rows.filter((row) => row.area === 'chain' && row.name.startsWith(`${what}, chain of `));
  const length = ({ name }: BenchRow): string => /chain of (\d+)$/.exec(name)?.[1] ?? name;
  const [all, some] = [lengths('all pages'), lengths('256 random pages')];
  const loaded = (what: string): readonly BenchRow[] =>
    rows
      .filter((row) => row.area === 'chain' && row.name === `${what}, CPU, checkpoint ${LOADED_LENGTH}`)
      .sort((a, b) => (a.ratio ?? 0) - (b.ratio ?? 0));
  const [allPages, somePages] = [loaded('all pages'), loaded('256 random pages')];
  const times = ({ ratio }: BenchRow): string => `${(ratio ?? 0).toPrecision(2)}x`;
  return [
    sayOf(
      [all[0], all.at(-1), some[0], some.at(-1)],
      (first, last, firstPages, lastPages) =>
        `All pages of a 512 MiB guest are read in ${own(first)} from a chain of ${length(first)} and in **${own(last)}** from one ` +
        `of ${length(last)}; 256 pages here and there in ${own(firstPages)} and ${own(lastPages)}.`,
    ),
    sayOf(
      [allPages[0], allPages.at(-1), somePages[0], somePages.at(-1)],
      (least, most, leastPages, mostPages) =>
        `Where real programs ran in between, checkpoint ${LOADED_LENGTH} takes ${times(least)} (${least.workload}) to ` +
        `**${times(most)}** (${most.workload}) the CPU time of a base of the same guest, and 256 pages here and there ` +
        `${times(leastPages)} to ${times(mostPages)}: pages that changed as a whole are stored as differences from many others.`,
    ),
    sayOf(
      [rows.find((row) => row.area === 'chain' && row.name === 'increments, stored')],
      (stored) =>
        `Regrouping pays for that: the chain stores ${readable((stored.ratio ?? 1) * 100 - 100, '%')} more than without it.`,
    ),
  ];
}

function memoryAnswer(rows: readonly BenchRow[]): readonly string[] {
  const found = rows.filter(({ area }) => area === 'memory').sort((a, b) => a.value - b.value);
  return [
    sayOf(
      [found[0], found.at(-1)],
      (least, most) =>
        `A watcher of guests under light load took ${own(least)} to **${own(most)}** at most, with budgets of 64 and 256 MiB ` +
        '(`--cache`). Guests that rewrite tens of MiB between checkpoints are not in this measurement, and take more.',
    ),
  ];
}
