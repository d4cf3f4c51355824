/** The caller's side of who ends the children when this process is killed before they are by themselves. */

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

import { CheckpointError } from '../../../src/errors.js';

const PROGRAM = fileURLToPath(new URL('./fork-keeper-main.js', import.meta.url));
const START_LIMIT_MS = 30_000;

export class ForkKeeper {
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  /**
   * Resolves when it is ready.
   * @param templateName by which it knows the children: each has the template open
   * @throws RESTORE_FAILED
   */
  static async start(templateName: string): Promise<ForkKeeper> {
    // Not through `host/run-program.ts`: it outlives this process, so it has no limit.
    const child = spawn(process.execPath, [PROGRAM, templateName], {
      detached: true,
      stdio: ['pipe', 'pipe', 'ignore'],
      cwd: '/',
    });
    child.stdin.on('error', () => undefined);
    const ready = once(child.stdout, 'data', { signal: AbortSignal.timeout(START_LIMIT_MS) });
    const ended = once(child, 'exit').then(() => Promise.reject(new Error('it has ended')));
    ended.catch(() => undefined);
    try {
      await Promise.race([ready, ended]);
    } catch (cause) {
      child.kill('SIGKILL');
      throw new CheckpointError('RESTORE_FAILED', 'who looks after the children did not start', { cause });
    }
    return new ForkKeeper(child);
  }

  /** To be removed as well. The folder is there, and is the fork's alone. */
  tellFolder(path: string): void {
    this.#child.stdin?.write(`${JSON.stringify(path)}\n`);
  }

  /** It is not needed any more. Resolves when it has ended. */
  async release(): Promise<void> {
    const { exitCode, signalCode } = this.#child;
    if (exitCode !== null || signalCode !== null) return;
    const ended = once(this.#child, 'exit');
    this.#child.stdin?.end('"done"\n');
    await ended;
  }
}
