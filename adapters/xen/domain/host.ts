/** Is this the control domain of a Xen host, and of which release. */

import { readFileSync } from 'node:fs';

import { CheckpointError } from '../../../src/errors.js';
import type { XenVersion } from '../ffi/versions.js';

/** Reads /sys/hypervisor and /proc/xen; another root is for tests. @throws VM_UNREACHABLE, VM_PERMISSION */
export function xenVersion(root = ''): XenVersion {
  if (readText(`${root}/sys/hypervisor/type`) !== 'xen') {
    throw new CheckpointError('VM_UNREACHABLE', 'this host does not run under Xen', {
      hint: 'xen: addresses work in the control domain (dom0) of a Xen host',
    });
  }
  const capabilities = readText(`${root}/proc/xen/capabilities`);
  if (!capabilities.split(/\s+/).includes('control_d')) {
    throw new CheckpointError('VM_PERMISSION', 'this is not the control domain of its Xen host', {
      hint: 'run cairn in dom0, with xenfs mounted at /proc/xen',
    });
  }
  const major = Number(readText(`${root}/sys/hypervisor/version/major`));
  const minor = Number(readText(`${root}/sys/hypervisor/version/minor`));
  return { major, minor };
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return '';
  }
}
