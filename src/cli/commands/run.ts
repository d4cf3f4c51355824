import { setTimeout as sleep } from 'node:timers/promises';

import type { Command } from 'commander';

import { describeError } from '../../errors.js';
import { notifyService } from '../../ffi/service-notify.js';
import { defaultRuntimeDir, openRuntimeDir } from '../../host/runtime-dir.js';
import { hypervisors } from '../../index.js';
import type { RunningVm } from '../../hypervisor/hypervisor.js';
import { ENDING_SIGNALS, plainCommand, run } from '../command.js';
import { asCheckpointError } from '../reporter.js';
import { Alarms } from '../service/alarms.js';
import { readConfig } from '../service/config.js';
import { metricsText, serveMetrics, writeMetrics } from '../service/metrics.js';
import { Service } from '../service/service.js';
import { readStatus, writeStatus } from '../service/status-file.js';
import { statusFields, type StatusFields } from '../service/status-text.js';
import { watchCommand } from './watch.js';

interface Options {
  readonly config: string;
  readonly check?: boolean;
  readonly json?: boolean;
}

/** It reads its file again instead of ending. */
const RELOAD = 'SIGHUP';
const US_PER_MS = 1000;

export function runCommand(): Command {
  return plainCommand('run', 'take checkpoints of all VMs of this host, by the policies of a file', [
    'cairn run',
    'cairn run --check --config ./cairn.toml   # say whether the file is right',
    'systemctl reload cairn                    # read it again',
  ])
    .option('--config <file>', 'the file with the policies', '/etc/cairn/cairn.toml')
    .option('--check', 'read the file, say which VMs that run it is for, and end')
    .option('--json', 'print one JSON object a line on stdout and nothing else')
    .action((options: Options) =>
      run(
        options,
        async ({ reporter, signal }) => {
          const config = await readConfig(options.config, watchCommand());
          const runtimeDir = await openRuntimeDir(defaultRuntimeDir());
          const service = new Service(config, (await readStatus(runtimeDir))?.vms ?? [], {
            look: () => runningVms(signal),
            say: (fields, text) => {
              if (text !== '') reporter.summary({ ...fields }, text);
            },
          });
          if (options.check === true) {
            const vms = service.policiesOf(await runningVms(signal));
            reporter.summary({ vms }, vms.map(({ address, policy }) => `${address}: ${policy}`).join('\n'));
            return undefined;
          }
          const asked = { reload: false };
          const onHangup = (): void => void (asked.reload = true);
          process.on(RELOAD, onHangup);
          const fields = (): StatusFields => statusFields({ ...service.status, isRunning: true }, Date.now());
          const metrics = (): Promise<string> => metricsText(fields());
          const alarms = new Alarms((text) => reporter.warning(text));
          const server = config.listen === '' ? undefined : await serveMetrics(config.listen, metrics);
          const watchdogMs = Number(process.env.WATCHDOG_USEC ?? 0) / US_PER_MS;
          const stepMs = Math.min(config.lookMs, ...(watchdogMs > 0 ? [watchdogMs / 2] : []));
          try {
            for (let isFirst = true; !signal.aborted; isFirst = false) {
              if (asked.reload) {
                asked.reload = false;
                await reload(service, options.config);
              }
              await service.look();
              await writeStatus(runtimeDir, service.status);
              alarms.look(fields().vms, service.config.alarms);
              await exported(service.config.metricsFile, metrics, (text) => reporter.warning(text));
              notifyService(`${isFirst ? 'READY=1\n' : ''}WATCHDOG=1\nSTATUS=${service.summary}`);
              await sleep(stepMs, undefined, { signal }).catch(() => undefined);
            }
          } finally {
            notifyService('STOPPING=1');
            server?.close();
            await service.end();
            process.off(RELOAD, onHangup);
            await writeStatus(runtimeDir, service.status);
          }
          return undefined;
        },
        process.stdout,
        ENDING_SIGNALS.filter((name) => name !== RELOAD),
      ),
    );

  /** A file that is wrong changes nothing. */
  async function reload(service: Service, path: string): Promise<void> {
    try {
      service.reload(await readConfig(path, watchCommand()));
    } catch (error) {
      service.refuseReload(asCheckpointError(error).message);
    }
  }
}

/** A folder that is full or gone is no reason to take no checkpoints. */
async function exported(
  path: string,
  metrics: () => Promise<string>,
  warn: (text: string) => void,
): Promise<void> {
  if (path === '') return;
  try {
    await writeMetrics(path, await metrics());
  } catch (error) {
    warn(`the figures for Prometheus cannot be written to ${path}: ${describeError(error)}`);
  }
}

async function runningVms(signal: AbortSignal): Promise<readonly RunningVm[]> {
  const found = await Promise.all(hypervisors().all.map(async (one) => (await one.running?.(signal)) ?? []));
  return found.flat();
}
