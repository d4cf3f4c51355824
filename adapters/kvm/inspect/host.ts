/** What this host's kernel offers for QEMUs, whichever they are. */

import type { HostFinding } from '../../../src/hypervisor/hypervisor.js';
import { PAGEMAP_SCAN_KIND, kernelObstacle } from '../trackers/pagemap-scan/support.js';
import { SOFT_DIRTY_KIND, softDirtyKernelObstacle } from '../trackers/soft-dirty/support.js';

export function kvmHostFindings(): readonly HostFinding[] {
  return [
    { part: `tracker ${PAGEMAP_SCAN_KIND}`, ...findingOf(kernelObstacle()) },
    { part: `tracker ${SOFT_DIRTY_KIND}`, ...findingOf(softDirtyKernelObstacle()) },
  ];
}

function findingOf(obstacle: { readonly reason: string; readonly remedy: string } | undefined): {
  readonly usable: boolean;
  readonly reason: string;
} {
  if (obstacle === undefined) return { usable: true, reason: '' };
  return { usable: false, reason: `${obstacle.reason}; ${obstacle.remedy}` };
}
