/**
 * A QMP client for the harness alone. It shares no code with the product, so that a mistake there cannot hide itself
 * here. It talks to the second QMP socket of a lab machine: a socket serves one client, and the first is the product's.
 */

import { connect, type Socket } from 'node:net';

type Reply = Record<string, unknown>;

export class HarnessQmp {
  readonly #socket: Socket;
  /** Names of the events so far, in order. */
  readonly events: string[] = [];
  #text = '';
  #waiting: ((reply: Reply) => void)[] = [];
  #failure: Error | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => this.#take(chunk));
    socket.on('error', (error) => this.#fail(error));
    socket.on('close', () => this.#fail(new Error('QEMU closed the harness QMP connection')));
  }

  /** Connects, retrying while QEMU is starting. @param isStarting false once there is nothing to wait for */
  static async connect(
    path: string,
    timeoutMs = 15_000,
    isStarting: () => boolean = () => true,
  ): Promise<HarnessQmp> {
    const until = Date.now() + timeoutMs;
    for (;;) {
      try {
        const socket = await new Promise<Socket>((resolve, reject) => {
          const attempt = connect(path, () => resolve(attempt));
          attempt.once('error', reject);
        });
        const client = new HarnessQmp(socket);
        await client.command('qmp_capabilities');
        return client;
      } catch (error) {
        if (Date.now() > until || !isStarting()) throw error;
        await new Promise((resolve) => setTimeout(resolve, 25));
      }
    }
  }

  /** Runs one command; they are answered in order. */
  async command(execute: string, args: Record<string, unknown> = {}): Promise<unknown> {
    if (this.#failure !== undefined) throw this.#failure;
    const reply = await new Promise<Reply>((resolve) => {
      this.#waiting.push(resolve);
      this.#socket.write(JSON.stringify({ execute, arguments: args }));
    });
    if ('error' in reply) throw new Error(`${execute}: ${JSON.stringify(reply.error)}`);
    return reply.return;
  }

  async hmp(line: string): Promise<string> {
    return String(await this.command('human-monitor-command', { 'command-line': line }));
  }

  /** running, paused, postmigrate and so on. */
  async status(): Promise<string> {
    return ((await this.command('query-status')) as { status: string }).status;
  }

  close(): void {
    this.#socket.removeAllListeners('close');
    this.#socket.destroy();
  }

  #take(chunk: string): void {
    this.#text += chunk;
    for (let end = this.#text.indexOf('\n'); end >= 0; end = this.#text.indexOf('\n')) {
      const message = JSON.parse(this.#text.slice(0, end)) as Reply;
      this.#text = this.#text.slice(end + 1);
      if ('return' in message || 'error' in message) this.#waiting.shift()?.(message);
      else if (typeof message.event === 'string') this.events.push(message.event);
    }
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const settle of this.#waiting.splice(0)) settle({ error: error.message });
  }
}
