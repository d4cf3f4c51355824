/** The guard of a stream (see `stream-guard-main.ts`). */

import { fileURLToPath } from 'node:url';

import type { GuardProgram } from '../../../guard/pause-guard.js';

export function streamGuard(socketPath: string, markerPath: string): GuardProgram {
  return {
    modulePath: fileURLToPath(new URL('./stream-guard-main.js', import.meta.url)),
    args: [socketPath, markerPath],
  };
}
