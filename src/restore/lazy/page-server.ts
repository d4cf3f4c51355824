/** The caller's side of a page server: starts it, and hears what it says. */

import { spawn, type ChildProcess } from 'node:child_process';
import type { Socket } from 'node:net';
import { fileURLToPath } from 'node:url';

import { CheckpointError } from '../../errors.js';
import { removeFillingNote } from '../../host/filling-note.js';
import type { PageServer, PageServerEvent, PageServerWord, ServedVm } from '../../hypervisor/page-server.js';
import { vmLine, type ServerOrder } from './server-order.js';

const KEEPER = fileURLToPath(new URL('page-keeper-main.js', import.meta.url));

const ENDED = new CheckpointError('RESTORE_FAILED', 'the page server has ended', {
  hint: 'cairn restore --resume ADDRESS starts another one',
});

export class StartedPageServer implements PageServer {
  readonly #child: ChildProcess;
  readonly #order: ServerOrder;
  readonly #events: PageServerEvent[] = [];
  #last: PageServerEvent | undefined;
  readonly ended: Promise<PageServerEvent>;
  #settle: (event: PageServerEvent) => void = () => undefined;
  #wake: () => void = () => undefined;
  #unread = '';
  #totalPages: number | undefined;
  #served: ServedVm | undefined;

  private constructor(child: ChildProcess, order: ServerOrder) {
    this.#child = child;
    this.#order = order;
    this.ended = new Promise((resolve) => (this.#settle = resolve));
    const { stdin, stdout } = child;
    stdin?.on('error', () => undefined);
    stdout?.setEncoding('utf8');
    stdout?.on('data', (text: string) => {
      const lines = (this.#unread + text).split('\n');
      this.#unread = lines.pop() ?? '';
      for (const line of lines) this.#hear(JSON.parse(line) as PageServerEvent | Opened);
    });
    const end = (): void => this.#hear({ event: 'failed', error: ENDED.toJSON() });
    // The output ends with the last of the two processes.
    stdout?.once('close', end);
    child.once('error', end);
  }

  /**
   * @param stream the connection to the VM, which stays the caller's to close
   * @throws what the server says when it cannot open the checkpoint
   */
  static async start(order: ServerOrder, stream: number | undefined): Promise<StartedPageServer> {
    // Not through `host/run-program.ts`: it outlives this process, so it has no limit.
    const child = spawn(process.execPath, [KEEPER, JSON.stringify(order)], {
      // A session of its own: a terminal's Ctrl-C does not reach it.
      detached: true,
      stdio: ['pipe', 'pipe', 'ignore', stream ?? 'ignore'],
      cwd: '/',
    });
    const server = new StartedPageServer(child, order);
    await server.#opened();
    return server;
  }

  get totalPages(): number {
    return this.#totalPages ?? 0;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  serve(vm: ServedVm): void {
    this.#served = vm;
    this.#child.stdin?.write(`${vmLine(vm)}\n`);
  }

  tell(word: PageServerWord): void {
    this.#child.stdin?.write(`${word}\n`);
  }

  async next(): Promise<PageServerEvent> {
    for (;;) {
      const event = this.#events.shift() ?? this.#last;
      if (event !== undefined) return event;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  end(): void {
    const { pid } = this.#child;
    if (pid === undefined) return;
    try {
      // Its group, which is the two of them.
      process.kill(-pid, 'SIGKILL');
    } catch {
      // Gone already.
    }
    if (this.#served !== undefined) removeFillingNote(this.#order.runtimeDir, this.#served.vm);
  }

  letGo(): void {
    const { stdin, stdout } = this.#child;
    this.#child.unref();
    (stdin as Socket | null)?.unref();
    (stdout as Socket | null)?.unref();
  }

  async #opened(): Promise<void> {
    while (this.#totalPages === undefined && this.#last === undefined)
      await new Promise<void>((resolve) => (this.#wake = resolve));
    if (this.#last?.event === 'failed') throw CheckpointError.fromJSON(this.#last.error);
  }

  #hear(event: PageServerEvent | Opened): void {
    if (this.#last !== undefined) return;
    if (event.event === 'opened') this.#totalPages = event.totalPages;
    else if (event.event === 'done' || event.event === 'failed') {
      this.#last = event;
      this.#settle(event);
    } else {
      if (event.event === 'lost') this.#settle(event);
      this.#events.push(event);
    }
    this.#wake();
  }
}

interface Opened {
  readonly event: 'opened';
  readonly totalPages: number;
}
