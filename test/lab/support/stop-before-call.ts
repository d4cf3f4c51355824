/**
 * Loaded into a process by `node --import`: it stands still, once, before the first file call of a name whose paths have a part in common.
 *
 *     CAIRN_STOP_BEFORE=link:/checkpoints/
 */

import calls from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';

const [name = '', part = ''] = (process.env.CAIRN_STOP_BEFORE ?? '').split(':');

export type StoppableCall = 'link' | 'open' | 'rename' | 'unlink';

/** For the environment of the process. */
export function stopBefore(call: StoppableCall, pathPart: string): NodeJS.ProcessEnv {
  return { NODE_OPTIONS: `--import=${import.meta.url}`, CAIRN_STOP_BEFORE: `${call}:${pathPart}` };
}

type Call = (...args: readonly unknown[]) => Promise<unknown>;

if (name !== '') {
  const all = calls as unknown as Record<string, Call>;
  const real = all[name]!;
  let isArmed = true;
  all[name] = (...args) => {
    if (isArmed && args.some((arg) => typeof arg === 'string' && arg.includes(part))) {
      isArmed = false;
      process.kill(process.pid, 'SIGSTOP');
    }
    return real(...args);
  };
  syncBuiltinESMExports();
}
