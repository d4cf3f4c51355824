/**
 * Running the tools of lvm2 and Ceph: always with the same environment, so that their output does not depend
 * on who calls, and always with a limit. What one that is killed in the middle leaves behind is the caller's
 * to look after.
 */

import { failureOf as failureOfProgram, runProgram, type ProgramResult } from '../../src/host/run-program.js';

const ENVIRONMENT = {
  LC_ALL: 'C',
  PATH: '/usr/sbin:/sbin:/usr/bin:/bin',
  // lvm2 complains about descriptors of its caller otherwise.
  LVM_SUPPRESS_FD_WARNINGS: '1',
};
const PACKAGES: Readonly<Record<string, string>> = { lvm: 'lvm2', dmsetup: 'dmsetup', rbd: 'ceph-common' };

export type ToolResult = ProgramResult;

/** @param tool `lvm`, `dmsetup` or `rbd` */
export type RunTool = (tool: string, args: readonly string[], limitMs: number) => Promise<ToolResult>;

export const runTool: RunTool = (tool, args, limitMs) =>
  runProgram(tool, args, { limitMs, env: ENVIRONMENT, cwd: '/' });

/**
 * What went wrong, in words; empty when nothing did.
 * @param tool and what it was to do
 */
export function failureOf(tool: string, result: ToolResult): string {
  return failureOfProgram(tool, result, PACKAGES[tool.replace(/ .*/, '')]);
}
