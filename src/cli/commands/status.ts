import { setTimeout as sleep } from 'node:timers/promises';

import type { Command } from 'commander';

import { CheckpointError } from '../../errors.js';
import { defaultRuntimeDir } from '../../host/runtime-dir.js';
import { plainCommand, run } from '../command.js';
import { EXIT } from '../exit-codes.js';
import { readStatus } from '../service/status-file.js';
import { statusFields, statusText } from '../service/status-text.js';

interface Options {
  readonly json?: boolean;
  readonly follow?: boolean;
}

const FOLLOW_MS = 1000;
/** Clears the screen and puts the cursor into its corner. */
const CLEAR = '\x1b[2J\x1b[H';

export function statusCommand(): Command {
  return plainCommand('status', 'say how the VMs are that `cairn run` takes checkpoints of', [
    'cairn status',
    'cairn status --follow',
    'cairn status --json | jq .vms',
  ])
    .option('--json', 'print one JSON object a line on stdout and nothing else')
    .option('--follow', 'go on, once a second, until stopped')
    .action((options: Options) =>
      run(options, async ({ reporter, signal }) => {
        for (;;) {
          const status = await readStatus(defaultRuntimeDir());
          if (status === undefined)
            throw new CheckpointError(
              'SERVICE_NOT_RUNNING',
              'no `cairn run` has run since this host was started',
              {
                hint: 'systemctl start cairn, after its policies are in /etc/cairn/cairn.toml',
              },
            );
          const nowMs = Date.now();
          const fields = statusFields(status, nowMs);
          if (options.follow === true && options.json !== true && process.stdout.isTTY)
            process.stdout.write(CLEAR);
          reporter.summary(fields, statusText(fields));
          if (options.follow !== true) return fields.isWell ? undefined : EXIT.incomplete;
          await sleep(FOLLOW_MS, undefined, { signal });
        }
      }),
    );
}
