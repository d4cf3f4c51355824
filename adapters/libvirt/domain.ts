/** One domain of a connection: what it is, what libvirt does with it at the moment, and its run state. */

import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError, isCheckpointError } from '../../src/errors.js';
import type { LibvirtConnection } from './native/connection.js';
import { libvirt, takeText, type Pointer } from './native/native.js';

const UUID_TEXT_BYTES = 37;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** virDomainState; NONE, BLOCKED and CRASHED never last for a QEMU that stands still. */
const RUNNING = 1;
const PAUSED = 3;
const SHUTOFF = 5;
/** virDomainPausedReason */
const PAUSED_UNKNOWN = 0;
export type DomainState = 'running' | 'paused' | 'shutoff' | 'other';

/** VIR_DOMAIN_XML_SECURE | VIR_DOMAIN_XML_MIGRATABLE */
const XML_FLAGS = 1 | 8;
/** VIR_DOMAIN_XML_SECURE | VIR_DOMAIN_XML_INACTIVE */
const DEFINITION_FLAGS = 1 | 2;
/** VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA | ...DISK_ONLY | ...ATOMIC */
const SNAPSHOT_FLAGS = 4 | 16 | 128;

/** How often a job under way is looked at. */
const JOB_POLL_MS = 250;

/** virDomainJobType */
const JOB_BOUNDED = 1;
const JOB_UNBOUNDED = 2;
/** virDomainJobOperation, by number. */
const OPERATIONS = [
  'job',
  'start',
  'save',
  'restore',
  'incoming migration',
  'migration',
  'snapshot',
  'snapshot revert',
  'dump',
  'backup',
  'snapshot deletion',
];

export class LibvirtDomain {
  readonly connection: LibvirtConnection;
  readonly name: string;
  readonly uuid: string;
  readonly #pointer: Pointer;

  private constructor(connection: LibvirtConnection, pointer: Pointer) {
    this.connection = connection;
    this.#pointer = pointer;
    connection.adopt(pointer);
    this.name = libvirt().domainGetName(pointer) ?? '';
    const uuid = Buffer.alloc(UUID_TEXT_BYTES);
    libvirt().domainGetUuid(pointer, uuid);
    this.uuid = uuid.toString('latin1', 0, UUID_TEXT_BYTES - 1);
  }

  /**
   * Finds a domain by UUID where the text has the form of one, by name, and last by id.
   * @throws VM_ADDRESS, VM_UNREACHABLE
   */
  static async find(connection: LibvirtConnection, wanted: string): Promise<LibvirtDomain> {
    const found =
      (UUID.test(wanted) ? await look(connection, libvirt().lookupByUuid, wanted) : undefined) ??
      (await look(connection, libvirt().lookupByName, wanted)) ??
      (/^\d{1,9}$/.test(wanted) ? await look(connection, libvirt().lookupById, Number(wanted)) : undefined);
    if (found !== undefined) return new LibvirtDomain(connection, found);
    throw new CheckpointError('VM_ADDRESS', `no domain "${wanted}" at ${connection.uri}`, {
      hint: `virsh -c ${connection.uri} list --all shows what is there`,
    });
  }

  /**
   * The XML with which libvirt would migrate or save it, passwords included.
   * @throws VM_GONE, VM_PERMISSION
   */
  async xml(): Promise<string> {
    return takeText(await this.#run('reading the XML', libvirt().domainGetXml, XML_FLAGS));
  }

  /** What virsh domstate says. */
  async state(): Promise<DomainState> {
    const state = new Int32Array(1);
    await this.#run('reading the state', libvirt().domainGetState, state, new Int32Array(1), 0);
    if (state[0] === RUNNING) return 'running';
    if (state[0] === PAUSED) return 'paused';
    return state[0] === SHUTOFF ? 'shutoff' : 'other';
  }

  /**
   * True of a paused domain that libvirt knows no reason for: QEMU stopped by itself, in a migration that
   * libvirt did not begin.
   */
  async isPausedWithoutReason(): Promise<boolean> {
    const state = new Int32Array(1);
    const reason = new Int32Array(1);
    await this.#run('reading the state', libvirt().domainGetState, state, reason, 0);
    return state[0] === PAUSED && reason[0] === PAUSED_UNKNOWN;
  }

  /**
   * What libvirt does with the domain right now, such as save, migration or backup; undefined when nothing.
   */
  async job(): Promise<string | undefined> {
    const type = new Int32Array(1);
    const parameters = new BigUint64Array(1);
    const count = new Int32Array(1);
    await this.#run('reading the job', libvirt().domainGetJobStats, type, parameters, count, 0);
    const operation = new Int32Array(1);
    // SAFETY: the array was allocated by the call above and is freed here, once.
    libvirt().typedParamsGetInt(parameters[0]!, count[0]!, 'operation', operation);
    libvirt().typedParamsFree(parameters[0]!, count[0]!);
    if (type[0] !== JOB_BOUNDED && type[0] !== JOB_UNBOUNDED) return undefined;
    return OPERATIONS[operation[0]!] ?? 'job';
  }

  /**
   * Returns when libvirt has no job on the domain.
   * @param waitMs how long to wait for the end of one
   * @throws VM_STATE, retryable, when there still is one
   */
  async awaitNoJob(waitMs = 0, signal?: AbortSignal): Promise<void> {
    const until = performance.now() + waitMs;
    let job = await this.job();
    while (job !== undefined && performance.now() < until) {
      await delay(JOB_POLL_MS, undefined, { ...(signal === undefined ? {} : { signal }) });
      job = await this.job();
    }
    if (job === undefined) return;
    throw new CheckpointError('VM_STATE', `libvirt is busy with the domain ${this.name} (${job})`, {
      hint: `wait until it is over (--wait-job SECONDS); virsh domjobinfo ${this.name} shows it`,
      retryable: true,
      detail: { job },
    });
  }

  /** @throws VM_STATE while another operation of libvirt holds the domain, VM_GONE */
  async suspend(): Promise<void> {
    await this.#run('pausing the domain', libvirt().domainSuspend);
  }

  /** @throws VM_STATE, VM_GONE */
  async resume(): Promise<void> {
    await this.#run('resuming the domain', libvirt().domainResume);
  }

  /** True when libvirt keeps a definition of it, which outlives the running domain. */
  async isPersistent(): Promise<boolean> {
    return (await this.#run('asking for the definition', libvirt().domainIsPersistent)) === 1;
  }

  /** The kept definition, passwords included. */
  async definition(): Promise<string> {
    return takeText(await this.#run('reading the definition', libvirt().domainGetXml, DEFINITION_FLAGS));
  }

  /** Replaces the kept definition. @throws VM_STATE */
  async define(xml: string): Promise<void> {
    const call = libvirt().domainDefineXml;
    this.connection.adopt(await this.connection.withConnection('changing the definition', call, xml));
  }

  /** All disks of the given <domainsnapshot>, or none. @throws VM_STATE */
  async snapshotDisks(snapshotXml: string): Promise<void> {
    const call = libvirt().snapshotCreateXml;
    const snapshot = await this.#run('taking the snapshot', call, snapshotXml, SNAPSHOT_FLAGS);
    libvirt().snapshotFree(snapshot);
  }

  /** A QMP command past libvirt. @returns QEMU's whole reply */
  async monitorCommand(command: string, passDescriptor?: number): Promise<string> {
    const reply = new BigUint64Array(1);
    if (passDescriptor === undefined) {
      await this.#run('monitor command', libvirt().qemuMonitorCommand, command, reply, 0);
    } else {
      const files = Int32Array.of(passDescriptor);
      const call = libvirt().qemuMonitorCommandWithFiles;
      await this.#run('monitor command', call, command, 1, files, null, null, reply, 0);
    }
    return takeText(reply[0]!);
  }

  /** A command for the agent in the guest. @returns its whole reply */
  async agentCommand(command: string, timeoutMs: number): Promise<string> {
    const seconds = Math.max(1, Math.ceil(timeoutMs / 1000));
    return takeText(await this.#run('guest agent', libvirt().qemuAgentCommand, command, seconds, 0));
  }

  #run<Args extends readonly unknown[], Result extends number | Pointer>(
    step: string,
    call: Parameters<typeof this.connection.run<[Pointer, ...Args], Result>>[1],
    ...args: Args
  ): Promise<Result> {
    return this.connection.run<[Pointer, ...Args], Result>(
      `${step} (${this.name})`,
      call,
      this.#pointer,
      ...args,
    );
  }
}

async function look<Key extends string | number>(
  connection: LibvirtConnection,
  call: Parameters<typeof connection.withConnection<[Key], Pointer>>[1],
  key: Key,
): Promise<Pointer | undefined> {
  try {
    return await connection.withConnection<[Key], Pointer>('looking for the domain', call, key);
  } catch (error) {
    if (isCheckpointError(error, 'VM_ADDRESS')) return undefined;
    throw error;
  }
}
