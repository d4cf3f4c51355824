import type { Command } from 'commander';

import { defaultRuntimeDir, openRuntimeDir } from '../../host/runtime-dir.js';
import { AUTO_DISK_MODE, planDisks } from '../../disks/disk-plan.js';
import { decideTracker } from '../../checkpoint/trust/tracker-choice.js';
import { isCheckpointError } from '../../errors.js';
import type { DiskDriverTraits, VmDisk } from '../../hypervisor/disks.js';
import type { VmHazard, VmReport } from '../../hypervisor/vm.js';
import { hypervisors } from '../../index.js';
import { command, run, type SharedOptions } from '../command.js';
import { EXIT } from '../exit-codes.js';
import { hostReport, hostReportText } from '../host-report.js';
import { mustBeStore, mustSuit, probeAddress, storeText } from '../store-report.js';
import { formatBytes, formatTable, printable } from '../../text.js';

export function doctorCommand(): Command {
  return command('doctor', 'say what this host and this VM allow, and what to change', [
    'cairn doctor',
    'cairn doctor qmp:/run/web1.qmp',
    'cairn doctor --repo s3://backups/cairn',
  ])
    .argument('[vm]', 'address of the VM; without it, this host is looked at, or the object store of --repo')
    .action((address: string | undefined, options: SharedOptions) =>
      run(options, async ({ reporter, signal, repositoryAddress }) => {
        if (address === undefined && options.repo === undefined) {
          const report = await hostReport(signal);
          reporter.summary({ ...report }, hostReportText(report));
          return report.needed.every(({ usable }) => usable) ? undefined : EXIT.refused;
        }
        if (address === undefined) {
          const repository = repositoryAddress();
          mustBeStore(repository);
          const probed = await probeAddress(repository, signal);
          const { report, isSingleWriter } = probed;
          reporter.summary({ repository, ...report, isSingleWriter }, storeText(probed, repository));
          await mustSuit(probed, repository);
          return undefined;
        }
        const runtimeDir = await openRuntimeDir(defaultRuntimeDir());
        const vm = await hypervisors()
          .forAddress(address)
          .attach(address, { runtimeDir, signal })
          .catch((error: unknown) => {
            if (isCheckpointError(error, 'VM_FILLING')) return error;
            throw error;
          });
        if (isCheckpointError(vm)) {
          const { message, hint = '', detail } = vm;
          reporter.summary({ vm: address, filling: detail }, `${printable(message)}\n${printable(hint)}`);
          return EXIT.refused;
        }
        try {
          const [report, layout, disks, runState] = [
            await vm.inspect(),
            await vm.memory.layout(),
            await vm.disks.list(),
            await vm.runState.read(),
          ];
          const refused = report.hazards.filter((hazard) => hazard.effect === 'refuse');
          const chosen = chosenOf(address, report);
          const diskProblem = diskProblemOf(disks, vm.disks.drivers);
          reporter.summary(
            {
              vm: address,
              identity: vm.identity,
              runState,
              memoryBytes: layout.sizeBytes,
              regions: layout.regions,
              disks,
              ...report,
              chosen,
              diskProblem,
              recovered: vm.recovered ?? [],
            },
            [
              `${address}: ${printable(vm.identity.name) || '(no name)'} ${printable(vm.identity.uuid)}, ${printable(vm.identity.machineType)}, ${printable(runState)}`,
              `memory ${formatBytes(layout.sizeBytes)} in ${layout.regions.length} regions`,
              ...(vm.recovered ?? []).map((text) => `put right: ${text}`),
              '',
              formatTable(
                ['tracker', 'usable', 'why'],
                report.trackers.map((tracker) => [
                  tracker.kind +
                    (tracker.kind === chosen ? ' (chosen)' : '') +
                    (tracker.armed === true ? ' (armed)' : ''),
                  tracker.usable ? 'yes' : 'no',
                  tracker.remedy === undefined ? tracker.reason : `${tracker.reason}; ${tracker.remedy}`,
                ]),
              ),
              ...(report.trackers.some(({ armed }) => armed === true)
                ? [`armed: stays so between checkpoints; cairn release ${printable(address)} ends it`]
                : []),
              ...report.hazards.map((hazard) => printable(hazardLine(hazard))),
              ...disks.map((disk) =>
                printable(
                  `disk ${disk.id}: ${disk.format} ${disk.path}, snapshots: ${disk.snapshotModes.join(', ') || 'none'}${disk.whyNoSnapshot === undefined ? '' : ` (${disk.whyNoSnapshot})`}`,
                ),
              ),
              ...(diskProblem === '' ? [] : [`disks: ${printable(diskProblem)}`]),
            ].join('\n'),
          );
          return refused.length > 0 ? EXIT.refused : undefined;
        } finally {
          await vm.close();
        }
      }),
    );
}

function hazardLine({ effect, text, code, remedy }: VmHazard): string {
  return `${effect}: ${text}${remedy === undefined ? '' : `; ${remedy}`} [${code}]`;
}

function chosenOf(address: string, report: VmReport): string {
  try {
    return decideTracker(address, report, 'auto').kind;
  } catch (error) {
    if (isCheckpointError(error)) return 'none';
    throw error;
  }
}

function diskProblemOf(disks: readonly VmDisk[], drivers: readonly DiskDriverTraits[]): string {
  try {
    planDisks(disks, drivers, { memoryOnly: false, mode: AUTO_DISK_MODE, hookCoversDisks: false });
    return '';
  } catch (error) {
    if (isCheckpointError(error, 'DISK_NOT_COVERED')) return `${error.message}; ${error.hint ?? ''}`;
    throw error;
  }
}
