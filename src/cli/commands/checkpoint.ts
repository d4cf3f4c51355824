import type { Command } from 'commander';

import { openSession } from '../../checkpoint/open-session.js';
import { hypervisors } from '../../index.js';
import { checkpointText } from '../checkpoint-text.js';
import { command, run } from '../command.js';
import { EXIT } from '../exit-codes.js';
import { addPolicyOptions, policyOf, type PolicyCliOptions } from '../keep-options.js';
import { addSessionOptions, sessionSettings, type SessionCliOptions } from '../session-options.js';
import { WatchForgetting } from '../watch-forgetting.js';

interface Options extends SessionCliOptions, PolicyCliOptions {
  readonly base?: boolean;
  readonly release?: boolean;
}

export function checkpointCommand(): Command {
  return addPolicyOptions(
    addSessionOptions(
      command('checkpoint', 'take one checkpoint of a running VM', [
        'cairn checkpoint qmp:/run/web1.qmp --repo /srv/cairn',
        'cairn checkpoint qmp:/run/web1.qmp --memory-only --max-pause 5 --json',
        'cairn checkpoint libvirt:web1 --repo /srv/cairn --keep-last 24 --keep-daily 7',
      ]),
    ),
  )
    .argument('<vm>', 'address of the VM')
    .option('--base', 'start a new base instead of adding to the chain')
    .option('--release', 'let go of the VM afterwards, as cairn release does')
    .action((vm: string, options: Options) =>
      run(options, async ({ reporter, signal, openRepository }) => {
        const forgetting = new WatchForgetting(policyOf(options), reporter);
        const session = await openSession(hypervisors(), vm, {
          ...sessionSettings(options),
          repository: await openRepository(),
          signal,
          onNotice: (text) => reporter.warning(text),
        });
        try {
          if (session.trackerReason !== '')
            reporter.warning(`using tracker ${session.trackerKind}: ${session.trackerReason}`);
          const summary = await forgetting.checkpoint(session, signal, {
            forceBase: options.base ?? false,
            onProgress: ({ phase, round, donePages, totalPages }) =>
              reporter.progress({
                task: `${phase} ${round}`,
                done: donePages,
                total: totalPages,
                unit: 'pages',
              }),
          });
          for (const warning of summary.warnings) reporter.warning(warning);
          reporter.summary({ ...summary }, checkpointText(summary));
          await forgetting.afterOneShot(session, signal);
        } finally {
          await session.close({ release: options.release === true });
        }
        return forgetting.isWhole ? undefined : EXIT.incomplete;
      }),
    );
}
