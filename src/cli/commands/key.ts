import { Command } from 'commander';

import { CheckpointError } from '../../errors.js';
import type { StorageBackend } from '../../storage/backend.js';
import { isSealed, openRaw } from '../../storage/open.js';
import {
  addSlot,
  readKeys,
  removeSlot,
  rotate,
  type KeySlot,
  type Unlocked,
} from '../../storage/sealing/key-slots.js';
import { loadKeys, loadKeysBytes, saveKeys } from '../../storage/sealing/open-sealed.js';
import { needed, secretFrom, secretOf, type Secret } from '../../storage/sealing/secret.js';
import { formatTable, printable } from '../../text.js';
import { command, run, type CommandContext, type SharedOptions } from '../command.js';
import { askForKey, askForNewKey } from '../key-options.js';

interface AddOptions extends SharedOptions {
  readonly newKeyFile?: string;
  readonly newPassphraseFile?: string;
  readonly label?: string;
}

export function keyCommand(): Command {
  return new Command('key')
    .description('list and change the keys of an encrypted repository')
    .exitOverride()
    .addCommand(listCommand())
    .addCommand(addCommand())
    .addCommand(removeCommand())
    .addCommand(rotateCommand());
}

function listCommand(): Command {
  return command('list', 'list the keys; needs none of them', ['cairn key list --repo /srv/cairn']).action(
    (options: SharedOptions) =>
      run(options, (context) =>
        withRaw(context, async (backend) => {
          report(context, readKeys(await loadKeysBytes(backend)).slots);
        }),
      ),
  );
}

function addCommand(): Command {
  return command('add', 'add a key that opens the repository as well', [
    'cairn key add --new-key-file /etc/cairn/key --label web1',
  ])
    .option('--new-key-file <file>', 'a file of 32 random bytes or more')
    .option('--new-passphrase-file <file>', 'a file with a passphrase; default: it is asked for')
    .option('--label <text>', 'what the list says of it', '')
    .action((options: AddOptions) =>
      run(options, (context) =>
        changeKeys(context, async (keys) =>
          addSlot(keys, await newSecret(options, context), options.label ?? ''),
        ),
      ),
    );
}

function removeCommand(): Command {
  return command('remove', 'remove a key; whoever had it may have kept what it opened: see rotate', [
    'cairn key remove 3f9a01bc',
  ])
    .argument('<id>', 'as the list has it')
    .action((id: string, options: SharedOptions) =>
      run(options, (context) => changeKeys(context, (keys) => Promise.resolve(removeSlot(keys, id)))),
    );
}

function rotateCommand(): Command {
  return command(
    'rotate',
    'encrypt what comes from now on by a new key, which only the key that is given opens',
    ['cairn key rotate --repo s3://backups/cairn'],
  ).action((options: SharedOptions) =>
    run(options, (context) => changeKeys(context, (keys, secret) => rotate(keys, secret))),
  );
}

async function withRaw(
  { repositoryAddress }: CommandContext,
  work: (backend: StorageBackend) => Promise<void>,
): Promise<undefined> {
  const backend = await openRaw(repositoryAddress());
  try {
    if (!(await isSealed(backend)))
      throw new CheckpointError('USAGE', `${backend.properties.location} is not an encrypted repository`, {
        hint: 'only "cairn init" can make one',
      });
    await work(backend);
  } finally {
    await backend.close();
  }
}

function changeKeys(
  context: CommandContext,
  change: (keys: Unlocked, secret: Secret) => Promise<Unlocked>,
): Promise<undefined> {
  return withRaw(context, async (backend) => {
    const secret = (await secretFrom(process.env)) ?? (await askForKey(context.signal)?.());
    if (secret === undefined) throw needed(`${backend.properties.location} is encrypted`);
    const changed = await change(await loadKeys(backend, secret), secret);
    await saveKeys(backend, changed, { signal: context.signal });
    report(context, changed.slots);
  });
}

async function newSecret(options: AddOptions, { signal }: CommandContext): Promise<Secret> {
  if (options.newKeyFile !== undefined) return secretOf('CAIRN_KEY_FILE', options.newKeyFile);
  if (options.newPassphraseFile !== undefined)
    return secretOf('CAIRN_PASSPHRASE_FILE', options.newPassphraseFile);
  const asked = await askForNewKey(signal)?.();
  if (asked !== undefined) return asked;
  throw new CheckpointError('USAGE', 'no new key was given', {
    hint: 'use --new-key-file or --new-passphrase-file; a passphrase is asked for at a terminal',
  });
}

function report({ reporter }: CommandContext, slots: readonly KeySlot[]): void {
  const shown = slots.map(({ id, kind, label, created }) => ({ id, kind, label, created }));
  reporter.summary(
    { keys: shown },
    formatTable(
      ['key', 'kind', 'since', 'label'],
      shown.map(({ id, kind, label, created }) => [id, kind, printable(created), printable(label)]),
    ),
  );
}
