/**
 * Running the tools of lvm2 and Ceph: always with the same environment, so that their output does not depend on who calls, and always
 * with a limit. What one that is killed in the middle leaves behind is the caller's to look after.
 */

import { spawn } from 'node:child_process';

import { describeError, systemErrorCode } from '../../src/errors.js';

const ENVIRONMENT = {
  LC_ALL: 'C',
  PATH: '/usr/sbin:/sbin:/usr/bin:/bin',
  // lvm2 complains about descriptors of its caller otherwise.
  LVM_SUPPRESS_FD_WARNINGS: '1',
};
/** lvm ignores SIGTERM while it must not be disturbed. */
const TERM_GRACE_MS = 3000;
const MAX_OUTPUT_BYTES = 16 << 20;
const PACKAGES: Readonly<Record<string, string>> = { lvm: 'lvm2', dmsetup: 'dmsetup', rbd: 'ceph-common' };

export type ToolResult =
  | { readonly kind: 'done'; readonly stdout: string }
  | { readonly kind: 'failed'; readonly text: string }
  /** Ended by the limit: what it has done is not known. */
  | { readonly kind: 'late' }
  | { readonly kind: 'missing' };

/** @param tool `lvm`, `dmsetup` or `rbd` */
export type RunTool = (tool: string, args: readonly string[], limitMs: number) => Promise<ToolResult>;

export const runTool: RunTool = (tool, args, limitMs) =>
  new Promise((resolve) => {
    const child = spawn(tool, args, { env: ENVIRONMENT, cwd: '/', stdio: ['ignore', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    let isLate = false;
    let killer: NodeJS.Timeout | undefined;
    const timer = setTimeout(() => {
      isLate = true;
      child.kill('SIGTERM');
      killer = setTimeout(() => child.kill('SIGKILL'), TERM_GRACE_MS);
    }, limitMs);
    const over = (result: ToolResult): void => {
      clearTimeout(timer);
      clearTimeout(killer);
      resolve(result);
    };
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      if (stdout.length < MAX_OUTPUT_BYTES) stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      if (stderr.length < MAX_OUTPUT_BYTES) stderr += text;
    });
    child.once('error', (error) =>
      over(
        systemErrorCode(error) === 'ENOENT'
          ? { kind: 'missing' }
          : { kind: 'failed', text: describeError(error) },
      ),
    );
    child.once('close', (code) => {
      if (isLate) over({ kind: 'late' });
      else if (code === 0) over({ kind: 'done', stdout });
      else
        over({
          kind: 'failed',
          text: stderr.trim().replaceAll(/\s*\n\s*/g, '; ') || `it ended with status ${code ?? '?'}`,
        });
    });
  });

/**
 * What went wrong, in words; empty when nothing did.
 * @param tool and what it was to do
 */
export function failureOf(tool: string, result: ToolResult): string {
  switch (result.kind) {
    case 'done':
      return '';
    case 'failed':
      return result.text;
    case 'late':
      return `${tool} did not end in time`;
    case 'missing': {
      const program = tool.replace(/ .*/, '');
      return `${program} is not installed (package ${PACKAGES[program] ?? program})`;
    }
  }
}
