import type { Command } from 'commander';

import { hypervisors } from '../../index.js';
import { rewindVm } from '../../rewind/rewind-vm.js';
import type { RewindResult } from '../../rewind/rewind.js';
import { formatMs } from '../../text.js';
import { command, run, type SharedOptions } from '../command.js';
import { wholeNumber } from '../parse.js';

interface Options extends SharedOptions {
  readonly name?: string;
  readonly undo?: boolean;
  readonly paused?: boolean;
  readonly keepDisks?: boolean;
  readonly room?: number;
}

/** 2^53 bytes, which a number counts exactly. */
const MAX_ROOM_MIB = 2 ** 33;

export function rewindCommand(): Command {
  return command('rewind', 'put a running VM back to one of its checkpoints, in its own process', [
    'cairn rewind qmp:/run/web1.qmp 3f9a --repo /srv/cairn',
    'cairn rewind qmp:/run/web1.qmp latest --undo',
  ])
    .argument('<vm>', 'address of the VM')
    .argument('<checkpoint>', "checkpoint id, the start of one, or latest, in the VM's chain")
    .option('--name <name>', "name of the VM's chain (default: the VM's name, else its UUID)")
    .option('--undo', 'take a checkpoint of the present first, and print its id')
    .option('--paused', 'leave the VM paused (default: as it was found)')
    .option('--keep-disks', 'leave the disks as they are, whatever the guest has written to them since')
    .option(
      '--room <MiB>',
      'memory for pages that are read before the pause; others are read in it (default: 512)',
      wholeNumber(0, MAX_ROOM_MIB),
    )
    .action((vm: string, checkpoint: string, options: Options) =>
      run(options, async ({ reporter, signal, openRepository }) => {
        const result = await rewindVm(hypervisors(), vm, checkpoint, {
          session: {
            repository: await openRepository(),
            name: options.name,
            memoryOnly: options.keepDisks,
            // What counts is whether the devices are the checkpoint's, which is looked at besides.
            attach: { allowChangedMachine: options.undo !== true },
          },
          ...(options.room === undefined ? {} : { heldBytes: options.room * 2 ** 20 }),
          undo: options.undo ?? false,
          paused: options.paused ?? false,
          keepDisks: options.keepDisks ?? false,
          signal,
          onNotice: (text) => reporter.warning(text),
        });
        reporter.summary({ ...result }, rewoundText(result));
        return undefined;
      }),
    );
}

function rewoundText(result: RewindResult): string {
  const { checkpointId, undoId, pages, pauseMs, running, disks } = result;
  return [
    `rewound to ${checkpointId}: ${pages} pages, ${disks.length} disks, paused ${formatMs(pauseMs)}, ${running ? 'running' : 'paused'}`,
    ...(undoId === '' ? [] : [`what it was before is checkpoint ${undoId}`]),
  ].join('\n');
}
