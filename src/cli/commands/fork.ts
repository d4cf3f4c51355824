import type { Command } from 'commander';

import { hypervisors } from '../../index.js';
import type { CheckpointSummary } from '../../checkpoint/summary.js';
import { eachByCommand } from '../../restore/fork/each-command.js';
import { MOST_CHILDREN } from '../../restore/fork/child-names.js';
import { forkVm } from '../../restore/fork/fork-vm.js';
import { forkCheckpoint, type ForkResult } from '../../restore/fork/fork.js';
import { formatMs, printable } from '../../text.js';
import { trustQuestion } from '../ask-trust.js';
import { command, run, type SharedOptions } from '../command.js';
import { EXIT } from '../exit-codes.js';
import { wholeNumber } from '../parse.js';

interface Options extends SharedOptions {
  readonly count: number;
  readonly name?: string;
  readonly chain?: string;
  readonly dir?: string;
  readonly paused?: boolean;
  readonly running?: boolean;
  readonly each?: string;
  readonly trustMachine?: boolean;
}

export function forkCommand(): Command {
  return command('fork', 'have several machines go on from one checkpoint, which share its memory', [
    'cairn fork latest -n 16 --name try --dir /run/tries',
    'cairn fork qmp:/run/web1.qmp -n 4   # takes a checkpoint first',
    "cairn fork 3f9a -n 2 --each '[ $CAIRN_PHASE = before ] || ./set-address $CAIRN_VM_NAME $CAIRN_FORK_MACS'",
  ])
    .argument('<checkpoint>', 'checkpoint id, the start of one, or latest; or the address of a running VM')
    .option('-n, --count <n>', 'how many', wholeNumber(1, MOST_CHILDREN), 1)
    .option(
      '--name <prefix>',
      'they are called PREFIX-0, PREFIX-1 and so on (default: the name of the chain)',
    )
    .option(
      '--chain <name>',
      "look only in this chain; of a VM, the name of its chain (default: the VM's name)",
    )
    .option('--dir <folder>', 'each gets a folder of its own in this one (default: the present folder)')
    .option('--paused', 'leave them paused (default: as the checkpoint found the VM)')
    .option('--running', 'have them run, also when the checkpoint found the VM paused')
    .option('--each <command>', 'shell command for each one, before it runs and after: docs/fork.md')
    .option('--trust-machine', 'fork also what this host did not take: it names the programs that are run')
    .action((from: string, options: Options) =>
      run(options, async ({ reporter, signal, openRepository }) => {
        const repository = await openRepository();
        const { each, chain } = options;
        const shared = {
          ...{ count: options.count, prefix: options.name, folder: options.dir, signal },
          ...(options.paused === true || options.running === true ? { paused: options.paused === true } : {}),
          trust: trustQuestion(options.trustMachine ?? false, signal),
          onProgress: (done: number, total: number) =>
            reporter.progress({ task: 'fork', done, total, unit: 'bytes' }),
        };
        const eachOf = (id: string) => (each === undefined ? undefined : eachByCommand(each, id));
        let result: ForkResult & { readonly checkpoint?: CheckpointSummary };
        if (from.includes(':')) {
          const onNotice = (text: string): void => reporter.warning(text);
          const session = { repository, name: chain, onNotice };
          result = await forkVm(hypervisors(), from, { ...shared, eachOf, session });
        } else {
          const manifest = await repository.find(from, chain, { signal });
          const known = hypervisors();
          result = await forkCheckpoint({
            ...{ ...shared, repository, hypervisors: known, manifest, each: eachOf(manifest.id) },
          });
        }
        const { checkpoint, ...fields } = result;
        for (const text of [...(checkpoint?.warnings ?? []), ...result.notes, ...result.failedAfter])
          reporter.warning(text);
        reporter.summary({ ...fields }, forkedText(result));
        return result.failedAfter.length === 0 ? undefined : EXIT.incomplete;
      }),
    );
}

function forkedText({ checkpointId, children, running, times }: ForkResult): string {
  const state = running ? 'running' : 'paused';
  return [
    `forked ${checkpointId}: ${children.length} ${state} after ${formatMs(times.runningMs)}`,
    ...children.map(({ name, pid, vmAddress }) => printable(`  ${name}  ${vmAddress}  process ${pid}`)),
  ].join('\n');
}
