import { Option, type Command } from 'commander';

import { defaultRuntimeDir, openRuntimeDir } from '../../host/runtime-dir.js';
import { hypervisors } from '../../index.js';
import type { Filling } from '../../restore/lazy/filling.js';
import { resumeFilling } from '../../restore/lazy/resume.js';
import { openRaw } from '../../storage/open.js';
import { restoreCheckpoint } from '../../restore/restore.js';
import { trustQuestion } from '../ask-trust.js';
import { command, run, type CommandContext, type SharedOptions } from '../command.js';
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
  readonly resume?: boolean;
  readonly background?: boolean;
  readonly fillRate?: string;
}

export function restoreCommand(): Command {
  const known = hypervisors();
  const restore = command('restore', 'bring a VM back from a checkpoint', [
    'cairn restore latest --repo /srv/cairn',
    'cairn restore 3f9a --qmp /run/web2.qmp --set-arg -name=web2 --paused',
    'cairn restore latest --name web1 --to unix:/run/incoming.sock',
    'cairn restore latest --name web1 --to libvirt --new-name web2 --disk vda=/srv/web2.qcow2',
    'cairn restore latest --name dom1 --new-name dom2   # a Xen domain',
    'cairn restore latest --lazy   # runs at once, its memory comes in meanwhile',
    'cairn restore --resume qmp:/run/web1.qmp   # the page server was killed',
  ])
    .argument('<checkpoint>', 'checkpoint id, the start of one, or latest; with --resume the address of a VM')
    .option('--name <name>', 'look only in this chain')
    .addOption(
      new Option('--paused', 'leave the VM paused (default: as the checkpoint found it)').conflicts(
        'running',
      ),
    )
    .option('--running', 'have the VM run, also when the checkpoint found it paused')
    .option('--keep-disks', 'do not roll the disks back to the checkpoint')
    .option('--trust-machine', 'restore also what this host did not take: it names the programs that are run')
    .option('--resume', 'go on filling a VM that was restored with --lazy and has lost its page server');
  return addRestoreSettings(restore, known.all).action((checkpoint: string, options: Options) =>
    run(options, async ({ reporter, signal, openRepository }) => {
      if (options.resume === true) return resume(checkpoint, options, { reporter, signal });
      const repository = await openRepository();
      const manifest = await repository.find(checkpoint, options.name);
      const { filling, ...result } = await restoreCheckpoint(
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
      const state = result.running ? 'running' : 'paused';
      if (filling === undefined) {
        reporter.summary(
          { checkpointId: manifest.id, ...result },
          `restored ${manifest.id}: ${where}, ${state}, ${formatBytes(result.streamBytes)} sent`,
        );
        return undefined;
      }
      const fields = { checkpointId: manifest.id, ...result, streamBytes: filling.totalBytes };
      const follow = { reporter, signal, isBackground: options.background === true };
      await followed(filling, follow, fields, `restored ${manifest.id}: ${where}, ${state}`);
      return undefined;
    }),
  );
}

async function resume(
  vmAddress: string,
  options: Options,
  { reporter, signal }: Pick<CommandContext, 'reporter' | 'signal'>,
): Promise<undefined> {
  const filling = await resumeFilling(vmAddress, {
    hypervisors: hypervisors(),
    runtimeDir: await openRuntimeDir(defaultRuntimeDir()),
    fillRate: options.fillRate,
    repository: options.repo === undefined ? undefined : (await openRaw(options.repo)).properties.location,
  });
  const follow = { reporter, signal, isBackground: options.background === true };
  const fields = { vmAddress, streamBytes: filling.totalBytes };
  await followed(filling, follow, fields, `resumed ${printable(vmAddress)}`);
}

interface Follow extends Pick<CommandContext, 'reporter' | 'signal'> {
  readonly isBackground: boolean;
}

/** The VM is up: what is left is to say so, and to wait for its memory where that is wanted. */
async function followed(
  filling: Filling,
  { reporter, signal, isBackground }: Follow,
  fields: Record<string, unknown>,
  text: string,
): Promise<void> {
  const bytes = formatBytes(filling.totalBytes);
  if (isBackground) {
    filling.letGo();
    const more = { filled: false, pageServer: filling.pid };
    reporter.summary({ ...fields, ...more }, `${text}, being filled by process ${filling.pid}: ${bytes}`);
    return;
  }
  try {
    await filling.followed({
      signal,
      onProgress: (done, total) => reporter.progress({ task: 'fill', done, total, unit: 'bytes' }),
    });
  } finally {
    filling.letGo();
  }
  reporter.summary({ ...fields, filled: true }, `${text}, all of its memory there: ${bytes}`);
}
