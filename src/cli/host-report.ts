/** What `cairn doctor` says of a host without looking at a VM. */

import { release } from 'node:os';

import { CheckpointError, describeError, isCheckpointError } from '../errors.js';
import { compress, decompress } from '../ffi/zstd.js';
import { defaultRuntimeDir, openRuntimeDir } from '../host/runtime-dir.js';
import { defaultStateDir, openStateDir } from '../host/state-dir.js';
import { hypervisors } from '../index.js';
import type { HostFinding, RunningVm } from '../hypervisor/hypervisor.js';
import { sharedKernels } from '../kernels/shared-kernels.js';
import { formatTable, printable } from '../text.js';
import { packageVersion } from './package-version.js';

export interface HostReport {
  readonly version: string;
  readonly node: string;
  readonly kernel: string;
  /** What Cairn cannot do without. */
  readonly needed: readonly HostFinding[];
  /** What makes checkpoints cheaper. */
  readonly offered: readonly HostFinding[];
  readonly vms: readonly RunningVm[];
}

export async function hostReport(signal: AbortSignal): Promise<HostReport> {
  const all = hypervisors().all;
  const offered = await Promise.all(all.map(async (one) => (await one.hostFindings?.()) ?? []));
  const vms = await Promise.all(all.map(async (one) => (await one.running?.(signal)) ?? []));
  return {
    version: packageVersion(),
    node: process.version,
    kernel: release(),
    needed: [
      await tried('libzstd', () => {
        const text = Buffer.from('what goes in comes out');
        if (!decompress(compress(text, 1), text.length).every((byte, i) => byte === text[i]))
          throw new CheckpointError('VM_UNSUPPORTED', 'libzstd gave back something else');
      }),
      await tried('kernels (WebAssembly)', sharedKernels),
      await tried('runtime folder', () => openRuntimeDir(defaultRuntimeDir())),
      await tried('state folder', () => openStateDir(defaultStateDir())),
    ],
    offered: offered.flat(),
    vms: vms.flat(),
  };
}

async function tried(part: string, step: () => unknown): Promise<HostFinding> {
  try {
    const result = await step();
    return { part, usable: true, reason: typeof result === 'string' ? result : '' };
  } catch (error) {
    const hint = isCheckpointError(error) && error.hint !== undefined ? `; ${error.hint}` : '';
    return { part, usable: false, reason: `${describeError(error)}${hint}` };
  }
}

export function hostReportText({ version, node, kernel, needed, offered, vms }: HostReport): string {
  const rowOf = ({ part, usable, reason }: HostFinding): readonly string[] => [
    part,
    usable ? 'yes' : 'no',
    reason,
  ];
  return [
    `cairn ${version} on Node.js ${node}, Linux ${printable(kernel)}`,
    '',
    formatTable(['part', 'usable', 'what'], [...needed, ...offered].map(rowOf)),
    ...(offered.some(({ usable }) => usable)
      ? []
      : ['no tracker is usable: all pages of a VM are read for each checkpoint']),
    '',
    ...(vms.length === 0
      ? ['no VM was found that runs here; a Xen domain has to be named']
      : ['VMs, each to be looked at by `cairn doctor ADDRESS`:', ...vms.map(vmLine)]),
  ].join('\n');
}

function vmLine({ address, name }: RunningVm): string {
  return `  ${printable(address)}${name === '' ? '' : ` (${printable(name)})`}`;
}
