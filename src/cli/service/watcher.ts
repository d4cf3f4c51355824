/** A `cairn watch` of the service: a process of its own, so that nothing that befalls it touches the others. */

import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';

import { isTurnMessage, type TurnMessage } from '../turns.js';

export interface WatcherEvents {
  readonly onMessage: (message: Readonly<Record<string, unknown>>) => void;
  readonly onWanted: () => void;
  readonly onDone: () => void;
  /** After everything else. */
  readonly onEnd: () => void;
}

export interface StartedWatcher {
  readonly ended: Promise<void>;
  giveTurn(): void;
  /** Asks it to end between two checkpoints. */
  end(): void;
}

export class Watcher implements StartedWatcher {
  readonly ended: Promise<void>;
  readonly #child: ChildProcess;

  constructor(args: readonly string[], { onMessage, onWanted, onDone, onEnd }: WatcherEvents) {
    this.#child = spawn(process.execPath, [process.argv[1]!, 'watch', ...args, '--json'], {
      stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
    });
    createInterface({ input: this.#child.stdout! }).on('line', (line) => onMessage(parsed(line)));
    this.#child.on('message', (message) => {
      if (!isTurnMessage(message)) return;
      if (message.turn === 'wanted') onWanted();
      else onDone();
    });
    // Its end says it all.
    this.#child.on('error', () => undefined);
    this.ended = new Promise((resolve) => {
      this.#child.once('close', () => {
        onDone();
        onEnd();
        resolve();
      });
    });
  }

  giveTurn(): void {
    const message: TurnMessage = { turn: 'given' };
    // One that has just ended takes it no more.
    if (this.#child.connected) this.#child.send(message, () => undefined);
  }

  end(): void {
    this.#child.kill('SIGTERM');
  }
}

/** A line that is no JSON is a defect, and no reason to end everybody else's watch. */
function parsed(line: string): Readonly<Record<string, unknown>> {
  try {
    return JSON.parse(line) as Readonly<Record<string, unknown>>;
  } catch {
    return { message_type: 'status', warning: line };
  }
}
