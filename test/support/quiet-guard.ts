/** A pause guard for tests: speaks the protocol and touches nothing. */

import { runPauseGuard } from '../../adapters/guard/pause-guard-process.js';

runPauseGuard({ resumeOnce: () => Promise.resolve(true), retryMs: 1 });
