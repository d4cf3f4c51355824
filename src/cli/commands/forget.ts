import type { Command } from 'commander';

import {
  disksOfStopped,
  openDiskDropper,
  snapshotsOf,
  type DiskDropper,
  type LeftSnapshot,
} from '../../disks/forgotten-disks.js';
import { CheckpointError, isCheckpointError } from '../../errors.js';
import { hypervisors } from '../../index.js';
import { Calendar } from '../../repository/forget/calendar.js';
import {
  forget,
  type ForgetChoice,
  type ForgetOptions,
  type ForgetResult,
  type ForgottenCheckpoint,
} from '../../repository/forget/forget.js';
import type { KeepPolicy } from '../../repository/forget/keep-policy.js';
import { misdatedText } from '../../repository/forget/misdated.js';
import type { Repository } from '../../repository/repository.js';
import type { SweepSource } from '../../repository/forget/sweep-plan.js';
import { askYesNo } from '../ask.js';
import { command, run, type CommandContext, type SharedOptions } from '../command.js';
import { EXIT } from '../exit-codes.js';
import { forgetFields, forgetText, SHORT_OF_ROOM } from '../forget-text.js';
import { addKeepOptions, keepPolicyOf, type KeepCliOptions } from '../keep-options.js';
import type { Reporter } from '../reporter.js';

interface Options extends SharedOptions, KeepCliOptions {
  readonly name?: string;
  readonly dryRun?: boolean;
  readonly withDisks?: boolean;
  readonly vm?: string;
}

/** What to forget of which chain. */
interface Work {
  readonly source: SweepSource;
  readonly choice: ForgetChoice;
}

export function forgetCommand(): Command {
  return addKeepOptions(
    command('forget', 'remove checkpoints, and what only they needed', [
      'cairn forget --name web1 --keep-last 10 --keep-daily 7 --keep-weekly 5 --dry-run',
      'cairn forget 3f9a 81c0 --repo /srv/cairn',
    ]),
  )
    .argument('[checkpoints...]', 'ids, the starts of some, or latest; instead of a policy')
    .option('--name <name>', 'only this chain')
    .option('--dry-run', 'show what would be removed, and change nothing')
    .option(
      '--with-disks',
      'remove their disk snapshots too: internal ones and those of logical volumes and Ceph images',
    )
    .option('--vm <address>', 'with --with-disks: address of the VM, when it runs')
    .action((checkpoints: readonly string[], options: Options) =>
      run(options, async (context) => {
        const policy = keepPolicyOf(options);
        checkChoice(checkpoints, policy);
        if (options.keepMisdated === true && policy === undefined)
          throw new CheckpointError('USAGE', '--keep-misdated is for a policy of --keep-... alone');
        if (options.vm !== undefined && options.withDisks !== true)
          throw new CheckpointError('USAGE', '--vm is for --with-disks alone');
        const repository = await context.openRepository();
        const work =
          policy === undefined
            ? await byId(repository, checkpoints, options.name)
            : (await sourcesOf(repository, options.name)).map((source) => ({
                source,
                choice: { policy, calendar: new Calendar(), keepMisdated: options.keepMisdated },
              }));
        const dryRun = options.dryRun ?? false;
        if (dryRun || options.withDisks !== true) return forgetAll(work, dryRun, context);
        const dropper = await openDiskDropper(hypervisors(), options.vm);
        try {
          return await forgetAll(work, dryRun, context, dropper);
        } finally {
          await dropper.close();
        }
      }),
    );
}

export function pruneCommand(): Command {
  return command(
    'prune',
    'remove what no checkpoint needs: left by crashes, or by a forget that was cut off',
    ['cairn prune --repo /srv/cairn'],
  )
    .option('--name <name>', 'only this chain')
    .option('--dry-run', 'show what would be removed, and change nothing')
    .action((options: Options) =>
      run(options, async (context) => {
        const repository = await context.openRepository();
        const work = (await sourcesOf(repository, options.name)).map((source) => ({
          source,
          choice: { manifestKeys: new Set<string>() },
        }));
        return forgetAll(work, options.dryRun ?? false, context);
      }),
    );
}

function checkChoice(checkpoints: readonly string[], policy: KeepPolicy | undefined): void {
  if (checkpoints.length > 0 !== (policy !== undefined)) return;
  const what = policy === undefined ? 'nothing says what to forget' : 'ids and a policy exclude each other';
  throw new CheckpointError('USAGE', what, {
    hint: 'name checkpoints by their ids, or say with --keep-... which are to be kept',
  });
}

async function sourcesOf(repository: Repository, name: string | undefined): Promise<readonly SweepSource[]> {
  const sources = await repository.sweepSources(name);
  if (name === undefined || sources.length > 0) return sources;
  throw new CheckpointError('CHECKPOINT_NOT_FOUND', `no checkpoints of ${name}`, {
    hint: 'see "cairn list"',
  });
}

async function byId(
  repository: Repository,
  checkpoints: readonly string[],
  name: string | undefined,
): Promise<readonly Work[]> {
  const byChain = new Map<string, Set<string>>();
  for (const wanted of checkpoints) {
    const { keys, object } = await repository.locate(wanted, name);
    byChain.set(keys.chain, (byChain.get(keys.chain) ?? new Set()).add(object.key));
  }
  const sources = await repository.sweepSources(name);
  return sources.flatMap((source) => {
    const manifestKeys = byChain.get(source.keys.chain);
    return manifestKeys === undefined ? [] : [{ source, choice: { manifestKeys } }];
  });
}

/** Reports one summary for each chain. @returns the exit code */
async function forgetAll(
  work: readonly Work[],
  dryRun: boolean,
  { reporter, signal }: CommandContext,
  dropper?: DiskDropper,
): Promise<number | undefined> {
  let isUndamaged = true;
  let isWhole = true;
  for (const { source, choice } of work) {
    let disks: readonly LeftSnapshot[] = [];
    const disksOf = disksOfStopped(hypervisors());
    const onForgotten = async (removed: readonly ForgottenCheckpoint[]): Promise<void> => {
      const gone = removed.flatMap(({ manifest }) => manifest ?? []);
      disks = dropper === undefined ? snapshotsOf(gone, disksOf) : await dropper.drop(gone);
    };
    let result: ForgetResult;
    try {
      result = await forgetOrAsk(source, choice, reporter, {
        dryRun,
        signal,
        onForgotten,
        onWait: (text) => reporter.warning(text),
        onProgress: (done, total) => reporter.progress({ task: 'forget', done, total, unit: 'bytes' }),
      });
    } catch (error) {
      // The checkpoints of these snapshots are gone: nothing else would name the snapshots any more.
      for (const { remedy } of disks) reporter.warning(`a disk snapshot stays: ${remedy}`);
      throw error;
    }
    if (dryRun) await onForgotten(result.removed);
    if (result.misdated.length > 0) reporter.warning(misdatedText(result.misdated, Date.now()));
    for (const problem of result.problems) reporter.warning(`kept because of damage: ${problem}`);
    isUndamaged &&= result.problems.length === 0;
    if (result.isShortOfRoom) reporter.warning(SHORT_OF_ROOM);
    isWhole &&= !result.isShortOfRoom && disks.every(({ why }) => why === '');
    const name = [...result.kept, ...result.removed].find(({ manifest }) => manifest)?.manifest?.vmName;
    const report = { ...result, name: name ?? result.chain, dryRun, disks };
    reporter.summary(forgetFields(report), forgetText(report));
  }
  if (!isUndamaged) return EXIT.damaged;
  return isWhole ? undefined : EXIT.incomplete;
}

/** A policy that cannot judge some checkpoints goes on if somebody at a terminal says so. */
async function forgetOrAsk(
  source: SweepSource,
  choice: ForgetChoice,
  reporter: Reporter,
  options: ForgetOptions & { readonly signal: AbortSignal },
): Promise<ForgetResult> {
  try {
    return await forget(source, choice, options);
  } catch (error) {
    if (!isCheckpointError(error, 'CHECKPOINT_MISDATED') || !('policy' in choice) || !reporter.canAsk)
      throw error;
    reporter.warning(error.message);
    const question = 'Keep them, and apply the policy to the others?';
    if (!(await askYesNo(question, options.signal))) throw error;
    return forget(source, { ...choice, keepMisdated: true }, options);
  }
}
