import type { Command } from 'commander';

import { CheckpointError } from '../../errors.js';
import { Repository } from '../../repository/repository.js';
import { isObjectStore, openRaw } from '../../storage/open.js';
import { isSecretNamed } from '../../storage/sealing/secret-names.js';
import { command, run, type SharedOptions } from '../command.js';
import { askForNewKey } from '../key-options.js';
import { mustSuit, probeAddress } from '../store-report.js';

interface Options extends SharedOptions {
  readonly encrypt?: boolean;
  /** False with --no-encryption. */
  readonly encryption: boolean;
}

export function initCommand(): Command {
  return command('init', 'create a new repository', [
    'cairn init --repo /srv/cairn',
    'cairn init --repo s3://backups/cairn --key-file /etc/cairn/key',
  ])
    .option('--encrypt', 'encrypt it; the default in an object store, and wherever a key is given')
    .option('--no-encryption', 'do not encrypt it')
    .action((options: Options) =>
      run(options, async ({ reporter, signal, repositoryAddress }) => {
        const address = repositoryAddress();
        const isEncrypted = isToBeEncrypted(options, address);
        if (isObjectStore(address)) await mustSuit(await probeAddress(address, signal), address);
        const raw = await openRaw(address);
        try {
          const backend = isEncrypted ? await sealed(raw, signal) : raw;
          const repository = await Repository.init(backend);
          reporter.summary(
            { repositoryId: repository.id, repository: address, encrypted: isEncrypted },
            `created repository ${repository.id} at ${address}, ${isEncrypted ? 'encrypted: without its key nobody can read it' : 'not encrypted'}`,
          );
          return undefined;
        } finally {
          await raw.close();
        }
      }),
    );
}

function isToBeEncrypted({ encrypt, encryption }: Options, address: string): boolean {
  if (encryption) return encrypt === true || isObjectStore(address) || isSecretNamed(process.env);
  if (encrypt === true)
    throw new CheckpointError('USAGE', '--encrypt and --no-encryption exclude each other');
  return false;
}

async function sealed(
  raw: Awaited<ReturnType<typeof openRaw>>,
  signal: AbortSignal,
): Promise<Awaited<ReturnType<typeof openRaw>>> {
  const [{ needed, secretFrom }, { seal }] = await Promise.all([
    import('../../storage/sealing/secret.js'),
    import('../../storage/sealing/open-sealed.js'),
  ]);
  const secret = (await secretFrom(process.env)) ?? (await askForNewKey(signal)?.());
  if (secret === undefined)
    throw needed('an encrypted repository needs a key (--no-encryption makes one in the clear)');
  return seal(raw, secret, 'init');
}
