/**
 * QMP over a unix socket (docs/interop/qmp-spec of QEMU): a greeting, `qmp_capabilities`, then commands whose
 * replies carry the id they were sent with, and events in between. One JSON object a line.
 *
 * A QMP socket serves one client at a time: a second one is connected by the kernel but gets no greeting
 * until the first leaves. That is told apart from a dead socket as VM_BUSY.
 */

import { createConnection, Socket } from 'node:net';

import { CheckpointError, describeError, isCheckpointError, systemErrorCode } from '../../src/errors.js';
import type { Json, JsonObject } from '../../src/types.js';
import { sendWithDescriptor } from '../../src/ffi/send-descriptor.js';
import { shutDownSocket } from '../../src/ffi/socket-pair.js';
import { whyStopped } from '../../src/host/process-stop.js';
import { descriptorOf } from '../../src/host/socket-descriptor.js';
import type { ExecuteOptions, Monitor, QmpEvent } from './monitor.js';
import { peerPid } from './peer-process.js';
import { asObject, asText, clipped, isJsonObject, MAX_REPLY_BYTES, parseReply } from './qmp-json.js';
import { LineBuffer } from './qmp-lines.js';

export interface QmpOptions {
  /**
   * How long to wait for the greeting. Default 3 s: a QEMU that starts or swaps is slow, another client stays
   * for good.
   */
  readonly greetingTimeoutMs?: number;
  /** Limit for each command that names none of its own. Default 20 s. */
  readonly commandTimeoutMs?: number;
  /** Commands may be carried out while QEMU's main loop waits; see `executeOutOfBand`. */
  readonly outOfBand?: boolean;
  readonly signal?: AbortSignal | undefined;
}

const GREETING_TIMEOUT_MS = 3000;
/**
 * `stop` waits for all disk requests in flight and an fsync of every disk, which takes seconds on a slow one.
 */
const COMMAND_TIMEOUT_MS = 20_000;
/** Of a text of QEMU that goes into an error. */
const MAX_DESC_LENGTH = 2000;
/** How QEMU refuses most commands before its machine is there, in a state that it calls `prelaunch`, too. */
const NO_MACHINE = 'permitted only after machine initialization';

interface Pending {
  readonly resolve: (value: Json) => void;
  readonly reject: (error: CheckpointError) => void;
  readonly timer: NodeJS.Timeout;
}

export class QmpClient implements Monitor {
  readonly path: string;
  readonly #socket: Socket;
  readonly #commandTimeoutMs: number;
  readonly #pending = new Map<string, Pending>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #lines = new LineBuffer(MAX_REPLY_BYTES);
  #greeting: ((error: CheckpointError | undefined) => void) | undefined;
  #version: JsonObject = {};
  /** A connection that was taken over may have the end of a line in it, and replies to somebody else. */
  #isOthers = false;
  readonly #idPrefix = `cairn-${process.pid}`;
  #nextId = 1;
  /** Why nothing more can be sent; undefined while connected. */
  #ended: CheckpointError | undefined;

  private constructor(path: string, socket: Socket, options: QmpOptions) {
    this.path = path;
    this.#socket = socket;
    this.#commandTimeoutMs = options.commandTimeoutMs ?? COMMAND_TIMEOUT_MS;
    socket.on('data', (bytes) => this.#receive(bytes));
    socket.on('error', (error) => this.#end(gone(path, error)));
    socket.on('close', () => this.#end(gone(path)));
  }

  /** @throws VM_UNREACHABLE, VM_PERMISSION, VM_BUSY, VM_STATE, QMP_PROTOCOL, VM_GONE */
  static async connect(path: string, options: QmpOptions = {}): Promise<QmpClient> {
    options.signal?.throwIfAborted();
    const socket = await open(path, options.signal);
    const client = new QmpClient(path, socket, options);
    try {
      await client.#greeted(options.greetingTimeoutMs ?? GREETING_TIMEOUT_MS, options.signal);
      await client.execute('qmp_capabilities', options.outOfBand === true ? { enable: ['oob'] } : undefined);
    } catch (error) {
      socket.destroy();
      throw error;
    }
    return client;
  }

  /**
   * Goes on with a connection that another process has opened, negotiated and left. The descriptor is this object's
   * from here on.
   * @param path for messages
   */
  static takeOver(path: string, descriptor: number, options: QmpOptions = {}): QmpClient {
    const client = new QmpClient(
      path,
      new Socket({ fd: descriptor, readable: true, writable: true }),
      options,
    );
    client.#isOthers = true;
    return client;
  }

  /** `version` of the greeting: { qemu: { major, minor, micro }, package }. */
  get version(): JsonObject {
    return this.#version;
  }

  /** The connected socket's descriptor, for questions to the kernel about the other end. */
  get descriptor(): number {
    return descriptorOf(this.#socket);
  }

  execute(command: string, args?: JsonObject, options: ExecuteOptions = {}): Promise<Json> {
    return this.#execute('execute', command, args, options);
  }

  /**
   * Has a command carried out even when QEMU's main loop waits for something, such as a page of the guest's memory. For
   * the few commands that allow it, on a connection that was opened with `outOfBand`.
   */
  executeOutOfBand(command: string, args?: JsonObject): Promise<Json> {
    return this.#execute('exec-oob', command, args, {});
  }

  #execute(
    verb: 'execute' | 'exec-oob',
    command: string,
    args: JsonObject | undefined,
    options: ExecuteOptions,
  ): Promise<Json> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const id = `${this.#idPrefix}-${this.#nextId++}`;
    const line = `${JSON.stringify({ [verb]: command, ...(args === undefined ? {} : { arguments: args }), id })}\n`;
    return new Promise((resolve, reject) => {
      const timeoutMs = options.timeoutMs ?? this.#commandTimeoutMs;
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(
          new CheckpointError(
            'QMP_TIMEOUT',
            `no answer to ${command} from ${this.path} within ${timeoutMs} ms`,
            {
              hint: 'QEMU may be blocked on a disk or a network file system',
              retryable: true,
              detail: { command },
            },
          ),
        );
      }, timeoutMs);
      this.#pending.set(id, { resolve, reject: (error) => reject(withCommand(error, command)), timer });
      try {
        this.#send(line, options.passDescriptor);
      } catch (error) {
        clearTimeout(timer);
        this.#pending.delete(id);
        reject(isCheckpointError(error) ? error : gone(this.path, error));
      }
    });
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Lets go of the connection, which stays open for whoever else has it. */
  leave(): void {
    this.#end(new CheckpointError('VM_GONE', `the connection to ${this.path} was left`), false);
  }

  close(): Promise<void> {
    this.#end(new CheckpointError('VM_GONE', `the connection to ${this.path} was closed`));
    return Promise.resolve();
  }

  #send(line: string, passDescriptor: number | undefined): void {
    if (passDescriptor === undefined) {
      this.#socket.write(line);
      return;
    }
    // Ancillary data goes out beside Node's stream; nothing of the stream may be queued in front of it.
    if (this.#socket.writableLength > 0) {
      throw new CheckpointError('QMP_PROTOCOL', `${this.path} does not take what is sent to it`, {
        retryable: true,
      });
    }
    sendWithDescriptor(this.descriptor, Buffer.from(line), passDescriptor);
  }

  #greeted(timeoutMs: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const abort = (): void =>
        this.#greeting?.(new CheckpointError('INTERRUPTED', `attaching to ${this.path} was interrupted`));
      const timer = setTimeout(() => {
        const silent = busy(this.path, 'accepts a connection but does not greet');
        void this.#whyStopped()
          .catch(() => undefined)
          .then((error) => this.#greeting?.(error ?? silent));
      }, timeoutMs);
      this.#greeting = (error) => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', abort);
        this.#greeting = undefined;
        if (error === undefined) resolve();
        else reject(error);
      };
      signal?.addEventListener('abort', abort, { once: true });
      if (this.#ended !== undefined) this.#greeting(this.#ended);
    });
  }

  /** Undefined when QEMU does not stand still as a whole. @throws FFI_FAILED */
  async #whyStopped(): Promise<CheckpointError | undefined> {
    const pid = peerPid(this.descriptor);
    const stop = await whyStopped(pid);
    if (stop === undefined) return undefined;
    return new CheckpointError('VM_STATE', `process ${pid} behind ${this.path} ${stop.what}`, {
      hint: stop.hint,
      retryable: true,
    });
  }

  #receive(bytes: Buffer): void {
    const isShort = this.#lines.push(bytes, (line) => {
      this.#line(line.toString('utf8').trim());
      return this.#ended === undefined;
    });
    if (!isShort) this.#end(malformed(this.path, `a line of more than ${MAX_REPLY_BYTES >> 20} MiB`));
  }

  #line(line: string): void {
    if (line === '') return;
    let message: Json;
    try {
      message = parseReply(line);
    } catch (error) {
      if (this.#isOthers) return;
      const what = error instanceof RangeError ? error.message : 'something that is not JSON';
      this.#end(malformed(this.path, what));
      return;
    }
    if (!isJsonObject(message)) this.#end(malformed(this.path, 'JSON that is not an object'));
    else if ('QMP' in message) this.#greet(message.QMP);
    else if ('event' in message) this.#event(message);
    else if ('return' in message || 'error' in message) this.#reply(message);
    else this.#end(malformed(this.path, 'a message of no known kind'));
  }

  #greet(greeting: Json | undefined): void {
    if (isJsonObject(greeting) && isJsonObject(greeting.version)) this.#version = greeting.version;
    this.#greeting?.(undefined);
  }

  #event(message: JsonObject): void {
    const event = {
      event: asText(message.event),
      data: isJsonObject(message.data) ? message.data : {},
    };
    for (const listener of this.#listeners) listener(event);
  }

  #reply(message: JsonObject): void {
    const id = message.id;
    if (typeof id === 'string' && id.startsWith(`${this.#idPrefix}-`)) this.#isOthers = false;
    if (typeof id !== 'string') {
      if (this.#isOthers) return;
      // A reply has no id when QEMU could not even read the command: nobody knows which command it was.
      const desc = clipped(asText(asObject(message.error).desc), MAX_DESC_LENGTH);
      this.#end(malformed(this.path, `a reply to no command${desc === '' ? '' : `: ${desc}`}`));
      return;
    }
    const pending = this.#pending.get(id);
    // A reply after the time limit of its command: nobody waits for it any more.
    if (pending === undefined) return;
    this.#pending.delete(id);
    clearTimeout(pending.timer);
    if ('return' in message) {
      pending.resolve(message.return ?? null);
      return;
    }
    const error = asObject(message.error);
    const errorClass = clipped(asText(error.class), MAX_DESC_LENGTH);
    const desc = clipped(asText(error.desc), MAX_DESC_LENGTH);
    pending.reject(
      desc.includes(NO_MACHINE)
        ? unconfigured(this.path)
        : new CheckpointError('QMP_COMMAND', desc, { detail: { class: errorClass, desc } }),
    );
  }

  #end(reason: CheckpointError, isForAll = true): void {
    if (this.#ended !== undefined) return;
    this.#ended = reason;
    // The guard may hold it as well: for QEMU it is to end now.
    if (isForAll && this.descriptor >= 0) shutDownSocket(this.descriptor);
    this.#socket.destroy();
    this.#greeting?.(reason);
    const waiting = [...this.#pending.values()];
    this.#pending.clear();
    for (const { timer, reject } of waiting) {
      clearTimeout(timer);
      reject(reason);
    }
  }
}

function open(path: string, signal: AbortSignal | undefined): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ path });
    const abort = (): void => {
      socket.destroy();
      reject(new CheckpointError('INTERRUPTED', `attaching to ${path} was interrupted`));
    };
    signal?.addEventListener('abort', abort, { once: true });
    socket.once('connect', () => {
      signal?.removeEventListener('abort', abort);
      socket.removeAllListeners('error');
      resolve(socket);
    });
    socket.once('error', (error) => {
      signal?.removeEventListener('abort', abort);
      reject(unreachable(path, error));
    });
  });
}

function unreachable(path: string, error: Error): CheckpointError {
  const code = systemErrorCode(error) ?? '';
  if (code === 'EACCES' || code === 'EPERM') {
    return new CheckpointError('VM_PERMISSION', `no permission to connect to ${path}`, {
      cause: error,
      hint: 'run as the user of QEMU or as root',
    });
  }
  // The queue of a listener that accepts nobody is full: several clients wait for the one that is served.
  if (code === 'EAGAIN') return busy(path, 'takes no further connection', error);
  const why =
    code === 'ENOENT'
      ? 'there is no such socket'
      : code === 'ECONNREFUSED'
        ? 'nobody listens on it'
        : error.message;
  return new CheckpointError('VM_UNREACHABLE', `cannot connect to ${path}: ${why}`, {
    cause: error,
    hint: 'is the VM running, with -qmp unix:PATH,server=on,wait=off?',
    detail: { path, error: code },
  });
}

function busy(path: string, symptom: string, cause?: Error): CheckpointError {
  return new CheckpointError('VM_BUSY', `${path} ${symptom}: another client has it`, {
    ...(cause === undefined ? {} : { cause }),
    hint: 'add a second -qmp socket for Cairn, or close the other client',
    retryable: true,
  });
}

function unconfigured(path: string): CheckpointError {
  return new CheckpointError(
    'VM_STATE',
    `the QEMU at ${path} was started with -preconfig and has no machine yet`,
    {
      hint: 'configure it and send x-exit-preconfig',
      retryable: true,
    },
  );
}

function gone(path: string, cause?: unknown): CheckpointError {
  const why = cause === undefined ? '' : `: ${describeError(cause)}`;
  return new CheckpointError('VM_GONE', `the connection to QEMU at ${path} was lost${why}`, {
    ...(cause === undefined ? {} : { cause }),
  });
}

function malformed(path: string, what: string): CheckpointError {
  return new CheckpointError('QMP_PROTOCOL', `${path} sent ${what}`, { hint: 'is it a QMP socket?' });
}

/**
 * Names the command in the text: a lost connection or an error reply means something only together with it.
 */
function withCommand(error: CheckpointError, command: string): CheckpointError {
  return new CheckpointError(error.code, `${command}: ${error.message}`, {
    ...(error.hint === undefined ? {} : { hint: error.hint }),
    retryable: error.retryable,
    cause: error,
    detail: { ...error.detail, command },
  });
}
