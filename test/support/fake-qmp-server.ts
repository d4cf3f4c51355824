/** A QMP server whose every byte a test decides. */

import { createServer, type Server, type Socket } from 'node:net';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export const GREETING =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}\r\n';

export interface FakeCommand {
  readonly execute: string;
  readonly arguments?: Readonly<Record<string, unknown>>;
  readonly id: string;
}

export interface FakeQmpOptions {
  /** What is sent to a new client; default: the greeting of a QEMU 7.2. Empty: nothing. */
  readonly greeting?: string;
  /** Called for each command but qmp_capabilities, which is answered. */
  readonly onCommand?: (command: FakeCommand, client: FakeQmpClient) => void;
}

export interface FakeQmpClient {
  send(text: string): void;
  sendBytes(bytes: Uint8Array): void;
  /** `{"return": value, "id": id}` and a line end. */
  answer(command: FakeCommand, value: unknown): void;
  hangUp(): void;
}

export class FakeQmpServer {
  readonly path: string;
  readonly commands: FakeCommand[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #dir: string;

  private constructor(dir: string, server: Server) {
    this.#dir = dir;
    this.path = join(dir, 'qmp.sock');
    this.#server = server;
  }

  static async start(options: FakeQmpOptions = {}): Promise<FakeQmpServer> {
    const dir = await mkdtemp(join(tmpdir(), 'cairn-fake-qmp-'));
    const server = createServer();
    const fake = new FakeQmpServer(dir, server);
    server.on('connection', (socket) => fake.#serve(socket, options));
    await new Promise<void>((resolve) => server.listen(fake.path, resolve));
    return fake;
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
    await rm(this.#dir, { recursive: true, force: true });
  }

  #serve(socket: Socket, options: FakeQmpOptions): void {
    this.#sockets.add(socket);
    socket.on('error', () => socket.destroy());
    const client: FakeQmpClient = {
      send: (text) => void socket.write(text),
      sendBytes: (bytes) => void socket.write(bytes),
      answer: (command, value) =>
        void socket.write(`${JSON.stringify({ return: value, id: command.id })}\r\n`),
      hangUp: () => void socket.destroy(),
    };
    client.send(options.greeting ?? GREETING);
    let text = '';
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => {
      text += chunk;
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const command = JSON.parse(text.slice(0, end)) as FakeCommand;
        text = text.slice(end + 1);
        if (command.execute === 'qmp_capabilities') {
          client.answer(command, {});
          continue;
        }
        this.commands.push(command);
        options.onCommand?.(command, client);
      }
    });
  }
}
