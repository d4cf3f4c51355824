/** Asks at a terminal whether to restore a checkpoint that this host did not take. */

import type { RestorePlan } from '../hypervisor/restore.js';
import type { TrustQuestion } from '../restore/trust.js';
import { printable } from '../text.js';
import { askYesNo, canAsk } from './ask.js';

/** @returns undefined where there is nobody to ask */
export function trustQuestion(isTrusted: boolean, signal: AbortSignal): TrustQuestion | undefined {
  if (isTrusted) return () => Promise.resolve(true);
  if (!canAsk()) return undefined;
  return (plan) => {
    process.stderr.write(`${planText(plan)}\n`);
    return askYesNo('Restore it?', signal);
  };
}

/** What comes out of the manifest is shown so that it cannot pass for anything else. */
export function planText({ commands, details, disks }: RestorePlan): string {
  return [
    'This host did not take the checkpoint. It would',
    ...commands.flatMap(([program = '', ...args]) => [
      `  run    ${printable(program)}`,
      ...args.map((argument) => `           ${printable(argument)}`),
    ]),
    ...details.map((detail) => `  with   ${printable(detail)}`),
    ...disks.map((disk) => `  roll back the disk ${printable(disk)}`),
  ].join('\n');
}
