import { Option, type Command } from 'commander';

import { hypervisors } from '../../index.js';
import { restoreCheckpoint } from '../../restore/restore.js';
import { trustQuestion } from '../ask-trust.js';
import { command, run, type SharedOptions } from '../command.js';
import { formatBytes, printable } from '../../text.js';
import { addRestoreSettings, restoreSettingsOf } from '../restore-settings.js';

/** Beside these, the options of the adapters: see `restoreSettingsOf`. */
interface Options extends SharedOptions {
  readonly name?: string;
  readonly to?: string;
  readonly paused?: boolean;
  readonly running?: boolean;
  readonly keepDisks?: boolean;
  readonly trustMachine?: boolean;
}

export function restoreCommand(): Command {
  const known = hypervisors();
  const restore = command('restore', 'bring a VM back from a checkpoint', [
    'cairn restore latest --repo /srv/cairn',
    'cairn restore 3f9a --qmp /run/web2.qmp --set-arg -name=web2 --paused',
    'cairn restore latest --name web1 --to unix:/run/incoming.sock',
    'cairn restore latest --name web1 --to libvirt --new-name web2 --disk vda=/srv/web2.qcow2',
    'cairn restore latest --name dom1 --new-name dom2   # a Xen domain',
  ])
    .argument('<checkpoint>', 'checkpoint id, the start of one, or latest')
    .option('--name <name>', 'look only in this chain')
    .addOption(
      new Option('--paused', 'leave the VM paused (default: as the checkpoint found it)').conflicts(
        'running',
      ),
    )
    .option('--running', 'have the VM run, also when the checkpoint found it paused')
    .option('--keep-disks', 'do not roll the disks back to the checkpoint')
    .option(
      '--trust-machine',
      'restore also what this host did not take: it names the programs that are run',
    );
  return addRestoreSettings(restore, known.all).action((checkpoint: string, options: Options) =>
    run(options, async ({ reporter, signal, openRepository }) => {
      const repository = await openRepository();
      const manifest = await repository.find(checkpoint, options.name);
      const result = await restoreCheckpoint(
        {
          repository,
          hypervisors: known,
          manifest,
          trust: trustQuestion(options.trustMachine ?? false, signal),
        },
        {
          ...(options.paused === true || options.running === true ? { paused: options.paused === true } : {}),
          keepDisks: options.keepDisks ?? false,
          signal,
          onProgress: (done, total) => reporter.progress({ task: 'restore', done, total, unit: 'bytes' }),
        },
        restoreSettingsOf(options, known.all),
      );
      if (result.frozenBecause !== undefined)
        reporter.warning(`the guest's file systems are still frozen: ${result.frozenBecause}`);
      for (const note of result.notes ?? []) reporter.warning(note);
      if (!result.running && options.paused !== true && manifest.runState === 'paused')
        reporter.warning(
          'the VM was paused when the checkpoint was taken, and is paused again: --running has it run',
        );
      const where =
        result.vmAddress === ''
          ? `sent to ${options.to ?? ''}`
          : [...(result.pid === 0 ? [] : [`process ${result.pid}`]), printable(result.vmAddress)].join(', ');
      reporter.summary(
        { checkpointId: manifest.id, ...result },
        `restored ${manifest.id}: ${where}, ${result.running ? 'running' : 'paused'}, ${formatBytes(result.streamBytes)} sent`,
      );
      return undefined;
    }),
  );
}
