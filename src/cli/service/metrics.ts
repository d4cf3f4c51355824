/** Figures of the service for Prometheus: as text, which its node_exporter takes from a folder, and at an address of this host. */

import { randomBytes } from 'node:crypto';
import { rename, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';

import { CheckpointError, describeError } from '../../errors.js';
import type { StatusFields, VmFields } from './status-text.js';

const LABELS = ['vm', 'address', 'policy'] as const;
const MS_PER_S = 1000;
/** Everybody may read it: node_exporter is a user of its own, and no figure is a secret. */
const FILE_MODE = 0o644;

interface Figure {
  readonly name: string;
  readonly help: string;
  readonly kind: 'gauge' | 'counter';
  readonly of: (vm: VmFields) => number | null;
}

const FIGURES: readonly Figure[] = [
  {
    name: 'cairn_vm_watched',
    help: 'Whether a watcher takes checkpoints of the VM.',
    kind: 'gauge',
    of: ({ state }) => Number(state === 'watched'),
  },
  {
    name: 'cairn_vm_running',
    help: 'Whether the VM runs, as far as the service sees.',
    kind: 'gauge',
    of: ({ state }) => Number(state !== 'gone'),
  },
  {
    name: 'cairn_vm_checkpoint_age_seconds',
    help: 'Age of the newest checkpoint; without one, time since the service knows of the VM.',
    kind: 'gauge',
    of: ({ ageMs }) => ageMs / MS_PER_S,
  },
  {
    name: 'cairn_vm_checkpoint_age_allowed_seconds',
    help: 'Age that the policy allows.',
    kind: 'gauge',
    of: ({ rpoMs }) => rpoMs / MS_PER_S,
  },
  {
    name: 'cairn_vm_late',
    help: 'Whether the newest checkpoint of a VM that runs is older than its policy allows.',
    kind: 'gauge',
    of: ({ isLate }) => Number(isLate),
  },
  {
    name: 'cairn_vm_problem',
    help: 'Whether something failed since the newest checkpoint.',
    kind: 'gauge',
    of: ({ problem }) => Number(problem !== null),
  },
  {
    name: 'cairn_vm_checkpoints_total',
    help: 'Checkpoints that were taken.',
    kind: 'counter',
    of: ({ checkpoints }) => checkpoints,
  },
  {
    name: 'cairn_vm_failures_total',
    help: 'Checkpoints and watchers that failed.',
    kind: 'counter',
    of: ({ failures }) => failures,
  },
  {
    name: 'cairn_vm_stored_bytes_total',
    help: 'Bytes that checkpoints have added to the repository.',
    kind: 'counter',
    of: ({ storedTotal }) => storedTotal,
  },
  {
    name: 'cairn_vm_pause_p50_seconds',
    help: 'Median pause of the last 500 checkpoints.',
    kind: 'gauge',
    of: ({ pauseP50Ms }) => (pauseP50Ms === null ? null : pauseP50Ms / MS_PER_S),
  },
  {
    name: 'cairn_vm_pause_p99_seconds',
    help: 'Pause that 99 % of the last 500 checkpoints do not exceed.',
    kind: 'gauge',
    of: ({ pauseP99Ms }) => (pauseP99Ms === null ? null : pauseP99Ms / MS_PER_S),
  },
];

/** In Prometheus' text format. */
export async function metricsText({ vms, problem }: StatusFields): Promise<string> {
  const { Counter, Gauge, Registry } = await import('prom-client');
  const registry = new Registry();
  const service = new Gauge({
    name: 'cairn_service_problem',
    help: 'Whether the service could not read its file again, or look for VMs.',
    registers: [registry],
  });
  service.set(Number(problem !== ''));
  for (const { name, help, kind, of } of FIGURES) {
    const settings = { name, help, labelNames: LABELS, registers: [registry] };
    const gauge = kind === 'gauge' ? new Gauge(settings) : undefined;
    const counter = kind === 'counter' ? new Counter(settings) : undefined;
    for (const vm of vms) {
      const value = of(vm);
      const labels = { vm: vm.name, address: vm.address, policy: vm.policy };
      if (value === null) continue;
      gauge?.set(labels, value);
      counter?.inc(labels, value);
    }
  }
  return registry.metrics();
}

/** Replaces the file whole: node_exporter may read at any time. @throws the system's error */
export async function writeMetrics(path: string, text: string): Promise<void> {
  // Its ending keeps node_exporter from reading it.
  const fresh = `${path}.${randomBytes(4).toString('hex')}.tmp`;
  try {
    await writeFile(fresh, text, { mode: FILE_MODE, flag: 'wx' });
    await rename(fresh, path);
  } catch (error) {
    await rm(fresh, { force: true });
    throw error;
  }
}

/**
 * Answers GET /metrics, and nothing else.
 * @param address such as 127.0.0.1:9469
 * @throws CONFIG_INVALID when it cannot be had
 */
export async function serveMetrics(address: string, text: () => Promise<string>): Promise<Server> {
  const { hostname, port } = new URL(`http://${address}`);
  const server = createServer((request, response) => {
    if (request.method !== 'GET' || request.url !== '/metrics') {
      response.writeHead(404).end('GET /metrics\n');
      return;
    }
    text().then(
      (body) =>
        response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' }).end(body),
      () => response.writeHead(500).end(),
    );
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) =>
      reject(
        new CheckpointError(
          'CONFIG_INVALID',
          `service.listen: cannot listen on ${address}: ${describeError(cause)}`,
          {
            cause,
          },
        ),
      ),
    );
    server.listen(Number(port), hostname, resolve);
  });
  server.unref();
  return server;
}
