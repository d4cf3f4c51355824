/**
 * Freezing the guest's file systems around the pause, and who thaws them.
 *
 *     freeze  marker set -> guard told -> guest-fsfreeze-freeze
 *     thaw    guest-fsfreeze-thaw -> marker removed -> guard told
 *
 * A guest that stays frozen is as good as dead, so the same three stand behind the thaw as behind the resume
 * (see `pause-marker.ts`): this process; its guard, when this one was killed or did not get through; and the
 * next Cairn that attaches, when both were.
 */

import { CheckpointError, describeError } from '../../../../src/errors.js';
import {
  clearPauseMarker,
  isLeftPaused,
  readPauseMarker,
  setPauseMarker,
  type PauseMarker,
} from '../../../guard/pause-marker.js';
import type { PauseGuard } from '../../../guard/pause-guard.js';
import { pauseTaken } from '../../../guard/guarded-pause.js';
import { agentError, thawGuest, type GuestAgent } from './guest-agent.js';
import { SocketAgent } from './socket-agent.js';

/** The agent answers at once, unless there is none. */
const STATUS_LIMIT_MS = 5000;

export interface FreezerOptions {
  /** Undefined when no way to the guest's agent is known. */
  readonly agent: GuestAgent | undefined;
  /** Socket of the agent; empty when it is reached through a manager. */
  readonly agentPath: string;
  readonly markerPath: string;
  /** Who sets the marker. */
  readonly owner: () => Promise<PauseMarker>;
  readonly guard: () => Promise<PauseGuard>;
  /** Lets the guard go: it does by itself what it was told of and not told the end of. */
  readonly releaseGuard: () => Promise<void>;
  readonly isRunning: () => Promise<boolean>;
}

export class GuestFreezer {
  readonly #options: FreezerOptions;

  constructor(options: FreezerOptions) {
    this.#options = options;
  }

  /**
   * @param limitMs for the agent to have written everything out
   * @param frozenLimitMs after which the guard has the guest thawed
   * @returns number of file systems
   * @throws GUEST_AGENT with nothing frozen, VM_UNSUPPORTED without an agent, VM_STATE of a VM that does not
   *   run, GUEST_FROZEN
   */
  async freeze(limitMs: number, frozenLimitMs: number): Promise<number> {
    const { agent, agentPath, markerPath, owner, guard, isRunning } = this.#options;
    if (agent === undefined) {
      throw new CheckpointError('VM_UNSUPPORTED', "no way to the guest's agent is known", {
        hint: 'give the VM a virtserialport named org.qemu.guest_agent.0 on a chardev socket, or name the socket with --guest-agent PATH',
      });
    }
    if (!(await isRunning())) {
      throw new CheckpointError(
        'VM_STATE',
        "the VM does not run, so the guest's agent cannot freeze anything",
        {
          hint: 'resume it, or leave --freeze away',
          retryable: true,
        },
      );
    }
    if (readPauseMarker(markerPath) !== undefined)
      throw frozenByOthers('an earlier freeze by Cairn is not over');
    const status = await agent.command('guest-fsfreeze-status', Math.min(limitMs, STATUS_LIMIT_MS));
    if (status !== 'thawed') {
      agent.close();
      throw frozenByOthers('its file systems are frozen already, by somebody else');
    }
    const ready = await guard();
    setPauseMarker(markerPath, { ...(await owner()), agentPath });
    try {
      // The agent serves one client: it is to be the guard, when that takes the freeze away.
      if (agent.descriptor !== undefined) ready.handOver(agent.descriptor, 'thawed');
      await ready.freezing(frozenLimitMs);
    } catch (error) {
      clearPauseMarker(markerPath);
      agent.close();
      throw error;
    }
    try {
      const count = await agent.command('guest-fsfreeze-freeze', limitMs);
      if (typeof count === 'number' && count > 0) return count;
      throw agentError(
        'the guest has no file system that can be frozen',
        'leave --freeze away: tmpfs and the like hold nothing that is on a disk',
      );
    } catch (error) {
      await this.thaw(error);
      throw error;
    }
  }

  /**
   * @throws GUEST_FROZEN when the agent does not answer; the guard goes on trying. PAUSE_LIMIT when it is
   *   thawed, but the guard had it thawed before
   */
  async thaw(cause?: unknown): Promise<void> {
    const { agent, markerPath, guard, releaseGuard } = this.#options;
    if (agent === undefined) return;
    try {
      await thawGuest(agent).catch(() => thawGuest(agent));
    } catch (error) {
      await releaseGuard();
      throw new CheckpointError(
        'GUEST_FROZEN',
        `the guest's file systems were frozen for a checkpoint and could not be thawed: ${describeError(error)}`,
        {
          cause: cause ?? error,
          hint:
            'a process in the background goes on trying; by hand: `virsh domfsthaw`, `qm guest cmd VMID fsfreeze-thaw`, ' +
            'or guest-fsfreeze-thaw to the socket of the agent',
        },
      );
    }
    // Between checkpoints the agent is there for others.
    agent.close();
    const isTaken = readPauseMarker(markerPath)?.takenAway !== undefined;
    clearPauseMarker(markerPath);
    (await guard().catch(() => undefined))?.thawed();
    if (isTaken) throw pauseTaken();
  }

  /** Thaws a guest that a Cairn froze and did not live to thaw. Best effort. @returns true when it did */
  async recover(): Promise<boolean> {
    const { markerPath } = this.#options;
    if (!(await isLeftPaused(markerPath))) return false;
    const path = readPauseMarker(markerPath)?.agentPath ?? '';
    const agent = path === '' ? this.#options.agent : new SocketAgent(path);
    if (agent === undefined) return false;
    try {
      await thawGuest(agent);
    } catch (error) {
      process.emitWarning(
        `a Cairn that was killed left file systems of the guest frozen: ${describeError(error)}`,
      );
      return false;
    } finally {
      if (agent !== this.#options.agent) agent.close();
    }
    clearPauseMarker(markerPath);
    return true;
  }

  close(): void {
    this.#options.agent?.close();
  }
}

function frozenByOthers(why: string): CheckpointError {
  return agentError(
    `the guest cannot be frozen: ${why}`,
    'a backup may be under way: wait for its end, or thaw by hand (`virsh domfsthaw`)',
  );
}
