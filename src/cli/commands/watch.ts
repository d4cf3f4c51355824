import { setTimeout as sleep } from 'node:timers/promises';

import type { Command } from 'commander';

import { openSession } from '../../checkpoint/open-session.js';
import type { CheckpointSession } from '../../checkpoint/session.js';
import { isCheckpointError, type CheckpointError } from '../../errors.js';
import { hypervisors } from '../../index.js';
import { checkpointText } from '../checkpoint-text.js';
import { command, run } from '../command.js';
import { EXIT } from '../exit-codes.js';
import { addPolicyOptions, policyOf, type PolicyCliOptions } from '../keep-options.js';
import { secondsForTimer, wholeNumber } from '../parse.js';
import { asCheckpointError } from '../reporter.js';
import { addSessionOptions, sessionSettings, type SessionCliOptions } from '../session-options.js';
import { MissedIntervals } from '../missed-intervals.js';
import { Turns } from '../turns.js';
import { WatchForgetting } from '../watch-forgetting.js';

interface Options extends SessionCliOptions, PolicyCliOptions {
  readonly every: number;
  readonly count?: number;
}

/** For a checkpoint under way when the watcher is ended. */
const GRACE_MS = 1000;
/** What a watcher does between checkpoints gets so long to come to an end before the next one is due: at most this share. */
const ENDING_MS = 200;
const ENDING_SHARE = 1 / 4;

/** Errors after which there is no next checkpoint to wait for. */
const FATAL = ['VM_GONE', 'VM_UNREACHABLE', 'VM_NOT_RESUMED', 'REPO_DAMAGED', 'WORKER_FAILED'] as const;

export function watchCommand(): Command {
  return addPolicyOptions(
    addSessionOptions(
      command('watch', 'take a checkpoint every so often until stopped (a signal ends it cleanly)', [
        'cairn watch qmp:/run/web1.qmp --every 10 --repo /srv/cairn',
        'cairn watch qmp:/run/web1.qmp --every 0.5 --count 100 --json',
        'cairn watch qmp:/run/web1.qmp --every 10 --keep-last 30 --keep-hourly 24 --with-disks',
      ]),
    ),
  )
    .argument('<vm>', 'address of the VM')
    .option(
      '--every <seconds>',
      'time from the start of one checkpoint to the start of the next',
      secondsForTimer,
      60,
    )
    .option('--count <n>', 'stop after that many checkpoints', wholeNumber(1))
    .action((vm: string, options: Options) =>
      run(options, async ({ reporter, signal, openRepository }) => {
        const forgetting = new WatchForgetting(policyOf(options), reporter);
        const repository = await openRepository();
        const work = afterGrace(signal);
        const open = (): Promise<CheckpointSession> =>
          openSession(hypervisors(), vm, {
            ...sessionSettings(options),
            repository,
            signal: work,
            waitSignal: signal,
            regroup: 'between',
            onNotice: (text) => reporter.warning(text),
          });
        const turns = new Turns();
        let session: CheckpointSession | undefined = await open().catch((error: unknown) => {
          turns.close();
          throw error;
        });
        let taken = 0;
        let failed = 0;
        const missed = new MissedIntervals(options.every * 1000);
        try {
          let tracker = '';
          while (!signal.aborted && (options.count === undefined || taken + failed < options.count)) {
            const startedMs = Date.now();
            const present: CheckpointSession = (session ??= await open());
            try {
              if (!(await turns.take(signal))) break;
              const summary = await forgetting.checkpoint(present, signal).finally(() => turns.release());
              taken++;
              // Hotplug may change it on the way.
              if (present.trackerKind !== tracker && present.trackerReason !== '')
                reporter.warning(`using tracker ${present.trackerKind}: ${present.trackerReason}`);
              tracker = present.trackerKind;
              for (const warning of summary.warnings) reporter.warning(warning);
              reporter.summary({ ...summary }, checkpointText(summary));
              const isLast = taken + failed === options.count;
              const due = isLast ? undefined : shortlyBeforeNext(startedMs, options.every * 1000, signal);
              await forgetting.afterCheckpoint(present, signal, due);
              if (due !== undefined) {
                const warning = await present.upkeep(due);
                if (warning !== '') reporter.warning(warning);
              }
              const late = isLast ? undefined : missed.after(summary, Date.now() - startedMs);
              if (late !== undefined) reporter.warning(late);
            } catch (error) {
              const known = asCheckpointError(error);
              // Whoever ends the watcher knows that it takes no more.
              if (known.code === 'INTERRUPTED') break;
              if (isFatal(known)) throw known;
              failed++;
              reporter.error(known);
              // Its connection to the VM was cut with that.
              if (known.detail.endedBy === 'guard') {
                session = undefined;
                await present.close();
              }
            }
            const last = options.count !== undefined && taken + failed >= options.count;
            if (!last) await pause(startedMs + options.every * 1000 - Date.now(), signal);
          }
        } finally {
          await session?.close();
          turns.close();
        }
        reporter.summary(
          { checkpoints: taken, failed, missed: missed.count },
          `${taken} checkpoints, ${failed} failed${missed.count > 0 ? `, ${missed.count} intervals missed` : ''}`,
        );
        return failed === 0 && forgetting.isWhole ? undefined : EXIT.incomplete;
      }),
    );
}

/**
 * Follows a signal that ends the watcher, a moment later: a checkpoint under way that is done by then is
 * spared. One that is cut off makes the next Cairn compare all pages.
 */
function afterGrace(signal: AbortSignal): AbortSignal {
  const work = new AbortController();
  signal.addEventListener('abort', () => {
    setTimeout(() => work.abort(signal.reason), GRACE_MS).unref();
  });
  return work.signal;
}

/**
 * Aborted shortly before the next checkpoint is due, or with a signal that ends the watcher.
 * @param startedMs when the last one began
 */
function shortlyBeforeNext(startedMs: number, everyMs: number, signal: AbortSignal): AbortSignal {
  const leftMs = startedMs + everyMs - Math.min(ENDING_MS, everyMs * ENDING_SHARE) - Date.now();
  return leftMs <= 0 ? AbortSignal.abort() : AbortSignal.any([AbortSignal.timeout(leftMs), signal]);
}

function isFatal(error: CheckpointError): boolean {
  return FATAL.some((code) => isCheckpointError(error, code));
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await sleep(Math.max(0, ms), undefined, { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}
