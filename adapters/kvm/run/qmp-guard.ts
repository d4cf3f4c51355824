/** The pause guard that reaches QEMU through its QMP socket; see `pause-guard-main.ts`. */

import { fileURLToPath } from 'node:url';

import type { GuardProgram } from '../../guard/pause-guard.js';

/** @param agentPath socket of the guest's agent, where there is one */
export function qmpGuard(socketPath: string, agentPath = ''): GuardProgram {
  return {
    modulePath: fileURLToPath(new URL('./pause-guard-main.js', import.meta.url)),
    args: [socketPath, agentPath],
  };
}
