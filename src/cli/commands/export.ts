import type { Command } from 'commander';

import { hypervisors } from '../../index.js';
import { exportCheckpoint } from '../../restore/restore.js';
import { command, run, type SharedOptions } from '../command.js';
import { formatBytes } from '../../text.js';

interface Options extends SharedOptions {
  readonly name?: string;
  readonly format: string;
}

export function exportCommand(): Command {
  return command('export', "write a checkpoint as a file that the hypervisor's own tools load", [
    'cairn export latest web1.mig --format qemu   # then: qemu-system-x86_64 ... -incoming "exec:cat web1.mig"',
    'cairn export latest web1.save --format libvirt   # then: virsh restore web1.save',
    'cairn export latest dom1.save --format xl   # then: xl restore dom1.save',
  ])
    .argument('<checkpoint>', 'checkpoint id, the start of one, or latest')
    .argument('<file>', 'file to create')
    .option('--name <name>', 'look only in this chain')
    .option(
      '--format <format>',
      'qemu: a migration stream; libvirt: a save image, of a libvirt domain, libvirt+gzip and so on a compressed one; xl: a file of xl save, of a Xen domain',
      'qemu',
    )
    .action((checkpoint: string, path: string, options: Options) =>
      run(options, async ({ reporter, signal, openRepository }) => {
        const repository = await openRepository();
        const manifest = await repository.find(checkpoint, options.name);
        const sizeBytes = await exportCheckpoint(
          { repository, hypervisors: hypervisors(), manifest },
          { format: options.format, path, signal },
        );
        if (manifest.frozen !== undefined)
          reporter.warning(
            "the guest's file systems are frozen in it: have its agent thaw them once it runs",
          );
        reporter.summary(
          { checkpointId: manifest.id, format: options.format, path, sizeBytes },
          `exported ${manifest.id} to ${path}, ${formatBytes(sizeBytes)}`,
        );
        return undefined;
      }),
    );
}
