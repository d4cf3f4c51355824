/** The program that users run, as `packaging/bundle.mjs` makes it. */

import { fileURLToPath } from 'node:url';

export const CAIRN_MAIN = fileURLToPath(new URL('../../../bundle/src/cli/main.js', import.meta.url));
