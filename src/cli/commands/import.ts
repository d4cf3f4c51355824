import type { Command } from 'commander';

import { importCheckpoint } from '../../intake/import.js';
import { hypervisors } from '../../index.js';
import { checkpointText } from '../checkpoint-text.js';
import { command, run, type SharedOptions } from '../command.js';

interface Options extends SharedOptions {
  readonly name?: string;
  readonly format?: string;
  readonly temp?: string;
}

export function importCommand(): Command {
  return command('import', "make a checkpoint out of a file of the hypervisor's own tools", [
    'cairn import dom1.save   # written by: xl save -c dom1 dom1.save',
    'cairn import web1.save   # written by: virsh save web1 web1.save',
    'cairn import web1.mig.gz --name web1   # written by: migrate "exec:gzip -c >web1.mig.gz"',
  ])
    .argument('<file>', 'file to read')
    .option(
      '--format <format>',
      'xl: a file of xl save; libvirt: of virsh save; qemu: a migration stream, also compressed (default: what its beginning says)',
    )
    .option('--name <name>', 'chain that it belongs to (default: the name in the file; qemu has none)')
    .option('--temp <folder>', 'where memory is unpacked meanwhile (default: $TMPDIR)')
    .action((path: string, options: Options) =>
      run(options, async ({ reporter, signal, openRepository }) => {
        const summary = await importCheckpoint({
          repository: await openRepository(),
          hypervisors: hypervisors(),
          format: options.format,
          path,
          name: options.name,
          tempDir: options.temp,
          signal,
        });
        for (const warning of summary.warnings) reporter.warning(warning);
        reporter.summary({ ...summary }, checkpointText(summary));
        return undefined;
      }),
    );
}
