import { Argument, type Command } from 'commander';

import { isCheckpointError } from '../../errors.js';
import { hypervisors } from '../../index.js';
import { printable } from '../../text.js';
import { command, run, type CommandContext, type SharedOptions } from '../command.js';

/** Words of which a shell offers those that begin as what was typed does. Behind a tab stands what the word means. */
export function completeCommand(): Command {
  return command('__complete', 'list words for the completions of shells', [])
    .addArgument(new Argument('<kind>').choices(['vm', 'checkpoint', 'chain']))
    .action((kind: 'vm' | 'checkpoint' | 'chain', options: SharedOptions) =>
      run(options, async (context) => {
        const words = await (kind === 'vm' ? vms(context.signal) : stored(kind, context));
        process.stdout.write(words.map((word) => `${word.map(printable).join('\t')}\n`).join(''));
        return undefined;
      }),
    );
}

async function vms(signal: AbortSignal): Promise<readonly (readonly string[])[]> {
  const found = await Promise.all(
    hypervisors().all.map(async (hypervisor) => (await hypervisor.running?.(signal)) ?? []),
  );
  return found.flat().map(({ address, name }) => [address, name]);
}

/** A repository that is not there offers nothing. */
async function stored(
  kind: 'checkpoint' | 'chain',
  { openRepository }: CommandContext,
): Promise<readonly (readonly string[])[]> {
  const repository = await openRepository().catch((error: unknown) => {
    if (isCheckpointError(error)) return undefined;
    throw error;
  });
  if (repository === undefined) return [];
  const { manifests } = await repository.checkpoints();
  if (kind === 'chain') return [...new Set(manifests.map(({ vmName }) => vmName))].map((name) => [name]);
  return [['latest'], ...manifests.map(({ id, vmName, time }) => [id, `${vmName} ${time}`])];
}
