/** Running the real command line, as a process of its own. */

import { spawn, type ChildProcess } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';

import { CAIRN_MAIN } from '../../support/cairn-main.js';

export type CliMessage = Readonly<Record<string, unknown>> & { readonly message_type: string };

export interface CliResult {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly messages: readonly CliMessage[];
  readonly stderr: string;
}

export interface CliOptions {
  /** Folder of the test; holds the runtime folder. */
  readonly dir: string;
  readonly env?: NodeJS.ProcessEnv;
  /** Run as this user. */
  readonly uid?: number;
  readonly gid?: number;
  /** Program with arguments that it is started by, such as nsenter. */
  readonly startedBy?: readonly string[];
}

export class CairnProcess {
  readonly child: ChildProcess;
  readonly messages: CliMessage[] = [];
  readonly ended: Promise<CliResult>;
  #wake: (() => void)[] = [];
  #isOver = false;

  constructor(args: readonly string[], options: CliOptions) {
    const runtimeDir = join(options.dir, 'runtime');
    mkdirSync(runtimeDir, { recursive: true, mode: 0o700 });
    const command = [...(options.startedBy ?? []), process.execPath, CAIRN_MAIN, ...args, '--json'];
    this.child = spawn(command[0]!, command.slice(1), {
      // What the test runner needs in NODE_OPTIONS is not what a user has.
      env: { ...process.env, NODE_OPTIONS: '', CAIRN_RUNTIME_DIR: runtimeDir, ...options.env },
      stdio: ['ignore', 'pipe', 'pipe'],
      ...(options.uid === undefined ? {} : { uid: options.uid }),
      ...(options.gid === undefined ? {} : { gid: options.gid }),
    });
    let text = '';
    let stderr = '';
    this.child.stdout!.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
      const lines = text.split('\n');
      text = lines.pop() ?? '';
      for (const line of lines) this.messages.push(JSON.parse(line) as CliMessage);
      this.#wakeAll();
    });
    this.child.stderr!.setEncoding('utf8').on('data', (chunk: string) => (stderr += chunk));
    this.ended = new Promise((resolve) => {
      this.child.once('close', (exitCode, signal) => {
        this.#isOver = true;
        resolve({ exitCode, signal, messages: this.messages, stderr });
        this.#wakeAll();
      });
    });
  }

  /** The n-th (from 0) message that fits, as soon as it is there. Throws when the process ends without it. */
  async message(fits: (message: CliMessage) => boolean, n = 0): Promise<CliMessage> {
    for (;;) {
      const found = this.messages.filter(fits)[n];
      if (found !== undefined) return found;
      if (this.#isOver) throw new Error(`cairn ended: ${JSON.stringify(await this.ended)}`);
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  #wakeAll(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }
}

/** Runs a command to its end, whatever the end is. */
export function runCairn(args: readonly string[], options: CliOptions): Promise<CliResult> {
  return new CairnProcess(args, options).ended;
}

/** Runs a command that must succeed. @returns its (last) summary */
export async function cairn(args: readonly string[], options: CliOptions): Promise<CliMessage> {
  const result = await runCairn(args, options);
  if (result.exitCode !== 0) throw new Error(`cairn ${args.join(' ')}: ${JSON.stringify(result)}`);
  const summary = result.messages.filter(({ message_type }) => message_type === 'summary').at(-1);
  if (summary === undefined) throw new Error(`cairn ${args.join(' ')} printed no summary`);
  return summary;
}

export function isSummary(message: CliMessage): boolean {
  return message.message_type === 'summary' && 'checkpoint_id' in message;
}
