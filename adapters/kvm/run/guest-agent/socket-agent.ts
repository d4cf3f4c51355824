/**
 * The guest's agent by the socket that QEMU listens on for it.
 *
 * One JSON object a line, as QMP, but without greeting and ids. What an earlier client left unread may come
 * first, and the agent may hold half of what it sent; so a connection begins with `guest-sync-delimited` and
 * a number of its own: byte 0xFF makes the agent forget the half line, and its reply, after a byte 0xFF too,
 * is the first that is meant for this connection. Source: qga/qapi-schema.json of QEMU.
 */

import { createConnection, type Socket } from 'node:net';

import { describeError, isCheckpointError } from '../../../../src/errors.js';
import { shutDownSocket } from '../../../../src/ffi/socket-pair.js';
import { descriptorOf } from '../../../../src/host/socket-descriptor.js';
import type { Json, JsonObject } from '../../../../src/types.js';
import { asObject, parseReply } from '../../../qemu/qmp-json.js';
import { agentError, resultOf, type GuestAgent } from './guest-agent.js';

const DELIMITER = 0xff;
const NEWLINE = 0x0a;
/** Replies that are asked for here are short. */
const MAX_REPLY_BYTES = 64 * 1024;
/** An agent that runs answers a sync at once. A guest under emulation, or one that swaps, needs its time. */
const SYNC_LIMIT_MS = 5000;

const NO_ANSWER_HINT =
  'does qemu-guest-agent run in the guest? The socket serves one client at a time: libvirt or another tool may hold it';

export class SocketAgent implements GuestAgent {
  readonly #path: string;
  #connection: AgentConnection | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  async command(name: string, timeoutMs: number, args?: JsonObject): Promise<Json> {
    try {
      this.#connection ??= await this.#connect(Math.min(SYNC_LIMIT_MS, timeoutMs));
      const connection = this.#connection;
      connection.send(`${JSON.stringify({ execute: name, arguments: args })}\n`);
      return resultOf(name, await connection.reply(timeoutMs, name));
    } catch (error) {
      // A late answer must not be taken for that of the next command.
      this.close();
      throw isCheckpointError(error)
        ? error
        : agentError(`${name} at ${this.#path}: ${describeError(error)}`, NO_ANSWER_HINT, error);
    }
  }

  get descriptor(): number | undefined {
    return this.#connection?.descriptor;
  }

  close(): void {
    this.#connection?.close();
    this.#connection = undefined;
  }

  async #connect(timeoutMs: number): Promise<AgentConnection> {
    const connection = new AgentConnection(this.#path, await open(this.#path));
    try {
      const id = Math.floor(Math.random() * 2 ** 31);
      const sync = JSON.stringify({ execute: 'guest-sync-delimited', arguments: { id } });
      connection.send(Buffer.concat([Buffer.of(DELIMITER), Buffer.from(`${sync}\n`)]));
      await connection.synced(id, timeoutMs);
      return connection;
    } catch (error) {
      connection.close();
      throw error;
    }
  }
}

class AgentConnection {
  readonly #path: string;
  readonly #socket: Socket;
  #unread = Buffer.alloc(0);
  #ended: Error | undefined;
  #wake: (() => void) | undefined;

  constructor(path: string, socket: Socket) {
    this.#path = path;
    this.#socket = socket;
    socket.on('data', (bytes: Buffer) => {
      this.#unread = Buffer.concat([this.#unread, bytes]);
      if (this.#unread.length > MAX_REPLY_BYTES) socket.destroy(new Error('a reply without an end'));
      this.#wake?.();
    });
    const end = (error?: Error): void => {
      this.#ended ??= error ?? new Error('the connection was closed');
      this.#wake?.();
    };
    socket.on('error', end);
    socket.on('close', () => end());
  }

  send(bytes: Uint8Array | string): void {
    this.#socket.write(bytes);
  }

  get descriptor(): number | undefined {
    const descriptor = descriptorOf(this.#socket);
    return descriptor < 0 ? undefined : descriptor;
  }

  close(): void {
    // The guard may hold it as well: for QEMU it is to end now.
    if (this.descriptor !== undefined) shutDownSocket(this.descriptor);
    this.#socket.destroy();
  }

  /** Skips everything up to the reply to the sync with this number. */
  async synced(id: number, timeoutMs: number): Promise<void> {
    const until = Date.now() + timeoutMs;
    for (;;) {
      const line = await this.#line(until, 'guest-sync-delimited', timeoutMs);
      const at = line.lastIndexOf(DELIMITER);
      if (at < 0) continue;
      if (asObject(parsed(line.subarray(at + 1))).return === id) return;
    }
  }

  async reply(timeoutMs: number, command: string): Promise<Json> {
    return parsed(await this.#line(Date.now() + timeoutMs, command, timeoutMs)) ?? null;
  }

  async #line(until: number, command: string, timeoutMs: number): Promise<Buffer> {
    for (;;) {
      const end = this.#unread.indexOf(NEWLINE);
      if (end >= 0) {
        const line = this.#unread.subarray(0, end);
        this.#unread = this.#unread.subarray(end + 1);
        return line;
      }
      if (this.#ended !== undefined) throw this.#ended;
      const leftMs = until - Date.now();
      if (leftMs <= 0) {
        throw agentError(
          `no answer to ${command} from the guest's agent at ${this.#path} within ${timeoutMs} ms`,
          NO_ANSWER_HINT,
        );
      }
      await this.#more(leftMs);
    }
  }

  async #more(timeoutMs: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      timer = setTimeout(resolve, timeoutMs);
    });
    clearTimeout(timer);
    this.#wake = undefined;
  }
}

/** Undefined for what is no JSON, or too deep to be a reply. */
function parsed(line: Uint8Array): Json | undefined {
  try {
    return parseReply(Buffer.from(line).toString('utf8'));
  } catch {
    return undefined;
  }
}

function open(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ path });
    socket.once('error', (cause) =>
      reject(
        agentError(
          `no connection to the guest's agent at ${path}: ${describeError(cause)}`,
          'name the socket of its chardev with --guest-agent PATH',
          cause,
        ),
      ),
    );
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
  });
}
