/** Takes one tracker through one scenario: a base, a checkpoint after each step, one more by a second attachment, verify. */

import { join } from 'node:path';

import { isCheckpointError } from '../../src/errors.js';
import { LabMachine, type Accelerator } from '../lab/machine.js';
import type { QemuVersion } from '../lab/support/lab-files.js';
import { scratchDir } from '../lab/support/lab-files.js';
import { kernelTrackers } from './host.js';
import { ExactSession, type ExactResult } from './exact-session.js';
import { MEMORY_MIB, type Scenario } from './scenarios.js';
import { SECOND_ATTACHMENT, type TruthLine } from './truth-line.js';

export interface TruthRun {
  readonly scenario: Scenario;
  readonly tracker: string;
  readonly accelerator: Accelerator;
  readonly qemu: QemuVersion;
  readonly report: (line: TruthLine) => void;
}

/** Less than any pause takes under emulation, so that there are live rounds. */
const MAX_PAUSE_MS = 1;

export async function runScenario({ scenario, tracker, accelerator, qemu, report }: TruthRun): Promise<void> {
  const whyNot = scenario.whyNot?.() ?? '';
  if (whyNot !== '') {
    report({ event: 'skipped', scenario: scenario.name, reason: whyNot });
    return;
  }
  const about = { scenario: scenario.name, tracker };
  const dir = scratchDir(`truth-${scenario.name}`);
  const setup = scenario.setUp(dir);
  // Otherwise it is refused whatever the guest does, whose boot takes a minute where KVM itself is emulated.
  const isThere = kernelTrackers().includes(tracker);
  const machine = await LabMachine.start({
    name: `truth-${scenario.name}`,
    dir,
    qemu,
    accelerator,
    memoryMib: MEMORY_MIB,
    noWait: !isThere,
    ...setup.options,
  });
  const open = (): Promise<ExactSession> =>
    ExactSession.open(machine, { tracker, maxPauseMs: MAX_PAUSE_MS, repository: join(dir, 'repo') });
  const tell = async (step: string, { summary, pauseMs, differing }: ExactResult): Promise<void> =>
    report({
      event: 'checkpoint',
      ...about,
      step,
      differing: await differing,
      kind: summary.kind,
      compareReason: summary.compareReason,
      dirtyPages: summary.dirtyPages,
      rounds: summary.rounds,
      pauseMs: Math.round(pauseMs),
      roundStopsMs: Math.round(summary.phases.roundStopsMs),
    });
  let session: ExactSession | undefined;
  try {
    if (isThere) await setup.onStart?.(machine);
    try {
      session = await open();
    } catch (error) {
      if (!isCheckpointError(error, 'TRACKER_UNAVAILABLE')) throw error;
      report({ event: 'refused', ...about, code: error.code, text: error.message });
      return;
    }
    if (session.trackerKind !== tracker) throw new Error(`the session uses ${session.trackerKind}`);
    await tell('base', await session.checkpoint());
    for (const step of scenario.steps) {
      await step.act(machine);
      await tell(step.name, await session.checkpoint());
    }
    await session.close();
    session = await open();
    await tell(SECOND_ATTACHMENT, await session.checkpoint());
    report({ event: 'verified', ...about, problems: await session.verify() });
    // A guest in the middle of a boot has no ticks to wait for.
    if (scenario.name !== 'reboot') await machine.waitForProgress(120_000);
  } finally {
    await session?.close();
    await machine.destroy();
    setup.onEnd?.();
  }
}
