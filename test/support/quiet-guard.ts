/** A pause guard for tests: speaks the protocol and touches nothing. */

import { runPauseGuard } from '../../adapters/kvm/pause-guard-process.js';

runPauseGuard({ resumeOnce: () => Promise.resolve(true), retryMs: 1 });
