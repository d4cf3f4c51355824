/** Loaded with `--import` into a process under test: it says at its end how much memory it took at most, in KiB. */

import { writeSync } from 'node:fs';

process.on('exit', () => writeSync(2, `peak ${process.resourceUsage().maxRSS}\n`));
