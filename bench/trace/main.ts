/**
 * `npm run traces -- [--only redis,idle] [--again]`: builds the workload guest and records a trace of each workload and epoch
 * length into the cache, unless it is there already. Needs root (the tracker), QEMU and the tools build-image.sh names.
 */

import { parseArgs } from 'node:util';

import { ensureTraces } from './ensure-traces.js';
import { WORKLOADS } from './workload-guest.js';

const { values } = parseArgs({ options: { only: { type: 'string' }, again: { type: 'boolean' } } });
const names = values.only?.split(',') ?? WORKLOADS.map(({ name }) => name);
const unknown = names.filter((name) => !WORKLOADS.some((workload) => workload.name === name));
if (unknown.length > 0) {
  process.stderr.write(
    `no such workload: ${unknown.join(', ')}; there are ${WORKLOADS.map(({ name }) => name).join(', ')}\n`,
  );
  process.exit(2);
}
const traces = await ensureTraces({
  names,
  again: values.again === true,
  progress: (text) => process.stderr.write(`${text}\n`),
});
for (const { path, sizeBytes } of traces)
  process.stdout.write(`${path} ${(sizeBytes / 1e6).toFixed(1)} MB\n`);
process.exit(0);
