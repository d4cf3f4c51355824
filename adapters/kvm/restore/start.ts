/**
 * All that is decided before a QEMU is started again: which program, with which arguments, variables and
 * rights. Nothing is touched by it.
 */

import { access, constants } from 'node:fs/promises';
import { isAbsolute, join, resolve } from 'node:path';

import { onlyKept, startEnvironment } from '../inspect/kept-environment.js';
import type { PresentDisk } from '../inspect/present-disks.js';
import type { PresentObject } from '../inspect/present-objects.js';
import { rightsOf, type ProcessRights } from '../inspect/process-rights.js';
import { restoredCommandLine, type RestoredCommandLine, type StartEdits } from './argv.js';
import { recordedMachine } from './machine.js';
import { refuseReplaceable } from './program-files.js';
import { planRights, type StartRights } from './start-rights.js';
import type { JsonObject } from '../../../src/types.js';

export interface PlannedStart extends RestoredCommandLine {
  /** Absolute, unless there is no such program. */
  readonly program: string;
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  readonly recordedRights: ProcessRights | undefined;
  readonly presentDisks: readonly PresentDisk[] | undefined;
  readonly presentObjects: readonly PresentObject[];
}

/** @throws RESTORE_FAILED, VM_UNSUPPORTED, USAGE: see `restoredCommandLine` and `recordedMachine` */
export async function planStart(machine: JsonObject, request: StartEdits): Promise<PlannedStart> {
  const recorded = recordedMachine(machine);
  const isOther = request.program !== undefined && request.program !== recorded.program;
  const env = startEnvironment(isOther ? ofAnotherProgram(recorded.env) : recorded.env);
  const program =
    request.program === undefined
      ? await found(recorded.program, recorded.cwd, env.PATH!)
      : await found(request.program, process.cwd(), process.env.PATH ?? '');
  const commandLine = restoredCommandLine(recorded, request);
  return {
    ...commandLine,
    program,
    cwd: recorded.cwd,
    env,
    recordedRights: recorded.rights,
    presentDisks: recorded.presentDisks,
    presentObjects: recorded.presentObjects,
  };
}

/**
 * As whom it may start.
 * @throws RESTORE_RIGHTS, and RESTORE_REPLACEABLE when others could have changed what it would load
 */
export async function allowStart(start: PlannedStart, isAsCaller: boolean): Promise<StartRights> {
  const own = await rightsOf('self');
  const rights = planRights(
    { recorded: start.recordedRights, options: start.options, asCaller: isAsCaller },
    own,
  );
  await refuseReplaceable(start, [rights.user, own.users[1]!]);
  return rights;
}

/** Another program finds its libraries by the caller's environment, the recorded one by the recorded. */
function ofAnotherProgram(recorded: Readonly<Record<string, string>>): Record<string, string> {
  const isOfProgram = ([name]: readonly [string, unknown]): boolean =>
    name.startsWith('LD_') || name === 'QEMU_MODULE_DIR';
  return onlyKept([
    ...Object.entries(recorded).filter((entry) => !isOfProgram(entry)),
    ...Object.entries(process.env).filter(isOfProgram),
  ]);
}

/** What a shell in `cwd` would run by that name. */
async function found(program: string, cwd: string, path: string): Promise<string> {
  if (isAbsolute(program)) return program;
  if (program.includes('/')) return resolve(cwd, program);
  for (const folder of path.split(':').filter(isAbsolute)) {
    const candidate = join(folder, program);
    const isThere = await access(candidate, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (isThere) return candidate;
  }
  return program;
}
