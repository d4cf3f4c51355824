/**
 * QEMU's monitor through libvirt, which keeps the socket for itself (virDomainQemuMonitorCommand and
 * ...WithFiles). `stop` and `cont` become libvirt's own calls (see `pauses.ts`), whoever asks for them.
 */

import { CheckpointError } from '../../../src/errors.js';
import type { Json, JsonObject } from '../../../src/types.js';
import type { ExecuteOptions, Monitor } from '../../qemu/monitor.js';
import { asText, isJsonObject, parseReply } from '../../qemu/qmp-json.js';
import type { LibvirtDomain } from '../domain.js';
import { continueDomain, stopDomain } from './pauses.js';

/** The limit that a QMP socket of our own has. */
const COMMAND_TIMEOUT_MS = 20_000;

const OWN_CALLS: ReadonlyMap<string, (domain: LibvirtDomain) => Promise<void>> = new Map([
  ['stop', stopDomain],
  ['cont', continueDomain],
]);

export class LibvirtMonitor implements Monitor {
  readonly #domain: LibvirtDomain;

  constructor(domain: LibvirtDomain) {
    this.#domain = domain;
  }

  async execute(command: string, args?: JsonObject, options: ExecuteOptions = {}): Promise<Json> {
    const line = JSON.stringify({ execute: command, ...(args === undefined ? {} : { arguments: args }) });
    const timeoutMs = options.timeoutMs ?? COMMAND_TIMEOUT_MS;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(timedOut(command, this.#domain.name, timeoutMs)), timeoutMs);
    });
    try {
      const own = OWN_CALLS.get(command);
      if (own !== undefined) {
        await Promise.race([own(this.#domain), late]);
        return {};
      }
      const reply = await Promise.race([this.#domain.monitorCommand(line, options.passDescriptor), late]);
      return resultOf(command, reply);
    } finally {
      clearTimeout(timer);
    }
  }

  /** @throws VM_UNSUPPORTED always: libvirt passes QEMU's events on only through an event loop of its own */
  onEvent(): () => void {
    throw new CheckpointError('VM_UNSUPPORTED', "QEMU's events do not come through libvirt");
  }

  /** Closes the domain's connection. */
  close(): Promise<void> {
    return this.#domain.connection.close();
  }
}

/** The result in one reply as QEMU wrote it. @throws QMP_COMMAND, QMP_PROTOCOL */
export function resultOf(command: string, reply: string): Json {
  let message: Json;
  try {
    message = parseReply(reply);
  } catch (cause) {
    throw new CheckpointError('QMP_PROTOCOL', `${command}: libvirt handed on no JSON that can be read`, {
      cause,
    });
  }
  if (isJsonObject(message) && 'return' in message) return message.return ?? null;
  if (!isJsonObject(message) || !isJsonObject(message.error)) {
    throw new CheckpointError('QMP_PROTOCOL', `${command}: libvirt handed on something that is no reply`);
  }
  const errorClass = asText(message.error.class);
  const desc = asText(message.error.desc);
  throw new CheckpointError('QMP_COMMAND', `${command}: ${desc}`, {
    detail: { class: errorClass, desc, command },
  });
}

function timedOut(command: string, name: string, timeoutMs: number): CheckpointError {
  return new CheckpointError(
    'QMP_TIMEOUT',
    `no answer to ${command} from the domain ${name} within ${timeoutMs} ms`,
    {
      hint: 'QEMU may be blocked on a disk, or libvirt be busy with the domain',
      retryable: true,
      detail: { command },
    },
  );
}
