/** A guard that wakes nobody: what is left then is left to the next Cairn. */

import { runPauseGuard } from '../../../../adapters/guard/pause-guard-process.js';

runPauseGuard({ resumeOnce: () => new Promise<boolean>(() => undefined), retryMs: 1000 });
