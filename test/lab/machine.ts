/** A real Linux guest under real QEMU (TCG), for tests, demo and bench. */

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { HarnessQmp } from './support/harness-qmp.js';
import {
  ensureLab,
  GUEST_COMMAND_LINE,
  labCache,
  qemuProgram,
  scratchDir,
  type QemuVersion,
} from './support/lab-files.js';
import { removeWithRepositories } from './support/left-repositories.js';

/**
 * `agent`: qemu-ga in the guest, started by its command start-agent, on the socket `agentPath`.
 * `share`: a folder of the machine's, by 9p with the tag share; needs what `whyNo9pGuest` makes.
 */
export type LabDevice = 'disk' | 'net' | 'balloon' | 'vga' | 'agent' | 'share';

export type Accelerator = 'tcg' | 'kvm';

export interface LabMachineOptions {
  readonly name: string;
  readonly memoryMib?: number;
  readonly qemu?: QemuVersion;
  readonly smp?: number;
  /** Emulation by default, which runs anywhere. */
  readonly accelerator?: Accelerator;
  readonly devices?: readonly LabDevice[];
  readonly uuid?: string;
  readonly extraArgs?: readonly string[];
  /** Program with arguments that QEMU is started by, such as setpriv. */
  readonly startedBy?: readonly string[];
  /** It becomes a daemon (-daemonize). */
  readonly daemon?: boolean;
  /** Folder for sockets, logs and disks; a fresh one by default. */
  readonly dir?: string;
  /** Return as soon as QEMU answers, not when the guest's first tick is there. */
  readonly noWait?: boolean;
}

export interface Tick {
  /** Counter in the guest's memory. */
  readonly tick: number;
  /** Lines of the guest's open file; equal to the counter as long as both went on together. */
  readonly lines: number;
}

const DISK_SIZE = '256M';
const running = new Set<number>();

process.once('exit', () => {
  for (const pid of running) killQuietly(pid);
});

export class LabMachine {
  readonly name: string;
  readonly dir: string;
  readonly pid: number;
  readonly qmp: HarnessQmp;
  /** Repositories below the folder that the test has damaged: `destroy` does not read them. */
  readonly damagedOnPurpose = new Set<string>();
  #commandCount = 0;

  private constructor(name: string, dir: string, pid: number, qmp: HarnessQmp) {
    this.name = name;
    this.dir = dir;
    this.pid = pid;
    this.qmp = qmp;
    running.add(pid);
  }

  static async start(options: LabMachineOptions): Promise<LabMachine> {
    ensureLab();
    const dir = options.dir ?? scratchDir(options.name);
    const program = qemuProgram(options.qemu ?? '7.2');
    const { accelerator = 'tcg', devices = ['balloon'] } = options;
    const log = openSync(join(dir, 'qemu.log'), 'a');
    const command = [...(options.startedBy ?? []), program.path];
    const guest = join(labCache(), devices.includes('share') ? 'guest-9p' : 'guest');
    const child = spawn(
      command[0]!,
      [
        ...command.slice(1),
        ...program.firmwareArgs,
        ...['-name', options.name, '-accel', accelerator, '-cpu', accelerator === 'kvm' ? 'host' : 'max'],
        ...['-m', `${options.memoryMib ?? 256}`],
        ...['-smp', `${options.smp ?? 1}`, '-nodefaults', '-display', 'none'],
        ...(options.uuid === undefined ? [] : ['-uuid', options.uuid]),
        ...['-kernel', join(guest, 'vmlinuz')],
        ...['-initrd', join(guest, devices.includes('agent') ? 'initrd-agent.gz' : 'initrd.gz')],
        ...['-append', GUEST_COMMAND_LINE],
        ...['-chardev', `file,id=diary,path=${join(dir, 'diary.log')},append=on`, '-serial', 'chardev:diary'],
        ...['-serial', `unix:${join(dir, 'agent.sock')},server=on,wait=off`],
        ...['-qmp', `unix:${join(dir, 'qmp.sock')},server=on,wait=off`],
        ...['-qmp', `unix:${join(dir, 'harness.sock')},server=on,wait=off`],
        ...devices.flatMap((device) => deviceArgs(device, dir)),
        ...(options.daemon === true ? ['-daemonize', '-pidfile', 'daemon.pid'] : []),
        ...(options.extraArgs ?? []),
      ],
      { cwd: dir, detached: true, stdio: ['ignore', log, log], env: program.env },
    );
    closeSync(log);
    child.unref();
    if (child.pid === undefined) throw new Error(`${program.path} did not start`);
    let hasEnded = false;
    child.once('exit', () => (hasEnded = true));
    if (options.daemon === true) await once(child, 'exit');
    const pid = options.daemon === true ? Number(readFileSync(join(dir, 'daemon.pid'), 'latin1')) : child.pid;
    const harness = await connectHarness(dir, () => !hasEnded || options.daemon === true).catch(
      (error: unknown) => {
        killQuietly(pid);
        throw error;
      },
    );
    const machine = new LabMachine(options.name, dir, pid, harness);
    if (options.noWait !== true) await machine.waitForTick(1, 120_000);
    return machine;
  }

  /** A machine that somebody else started with the same folder: a restored one. */
  static async adopt(name: string, dir: string, pid: number): Promise<LabMachine> {
    return new LabMachine(name, dir, pid, await connectHarness(dir));
  }

  /** The socket for the product. */
  get qmpPath(): string {
    return join(this.dir, 'qmp.sock');
  }

  /** Socket of qemu-ga. */
  get agentPath(): string {
    return join(this.dir, 'qga.sock');
  }

  get address(): string {
    return `qmp:${this.qmpPath}`;
  }

  /** All that the guest has written to its first serial port. A restored machine goes on in the same file. */
  diary(): string {
    const path = join(this.dir, 'diary.log');
    return existsSync(path) ? readFileSync(path, 'latin1') : '';
  }

  /** Ticks seen so far, in order; `sinceByte` skips what was in the diary before. */
  ticks(sinceByte = 0): readonly Tick[] {
    return [
      ...this.diary()
        .slice(sinceByte)
        .matchAll(/tick (\d+) lines (\d+)\r?\n/g),
    ].map((match) => ({
      tick: Number(match[1]),
      lines: Number(match[2]),
    }));
  }

  lastTick(): number {
    return this.ticks().at(-1)?.tick ?? 0;
  }

  async waitForTick(atLeast: number, timeoutMs = 60_000, sinceByte = 0): Promise<Tick> {
    const until = Date.now() + timeoutMs;
    for (;;) {
      const found = this.ticks(sinceByte).find((tick) => tick.tick >= atLeast);
      if (found !== undefined) return found;
      if (!this.isAlive()) throw new Error(`${this.name} died: ${this.log()}`);
      if (Date.now() > until)
        throw new Error(`${this.name}: no tick ${atLeast}; diary ends: ${this.diary().slice(-400)}`);
      await sleep(20);
    }
  }

  /** The guest has booted again since the diary had this many bytes: its counter began anew. */
  async waitForBoot(sinceByte: number, timeoutMs = 120_000): Promise<void> {
    const until = Date.now() + timeoutMs;
    while (!this.ticks(sinceByte).some(({ tick }) => tick === 1)) {
      if (!this.isAlive()) throw new Error(`${this.name} died: ${this.log()}`);
      if (Date.now() > until) throw new Error(`${this.name} did not boot: ${this.diary().slice(-400)}`);
      await sleep(20);
    }
  }

  /** The guest goes on: two ticks more than it has now. */
  async waitForProgress(timeoutMs = 60_000): Promise<void> {
    const bytes = this.diary().length;
    const from = this.lastTick();
    await this.waitForTick(from + 2, timeoutMs, bytes);
  }

  /** Runs a shell command in the guest. @returns its output */
  async guest(command: string, timeoutMs = 60_000): Promise<string> {
    const id = `c${++this.#commandCount}-${Date.now() % 100_000}`;
    const socket = connect(join(this.dir, 'agent.sock'));
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise<string>((resolve, reject) => {
        let text = '';
        const send = () => socket.write(`${id} ${command}\n`);
        timer = setTimeout(
          () => reject(new Error(`guest command timed out: ${command}\n${text}`)),
          timeoutMs,
        );
        socket.setEncoding('latin1');
        socket.once('error', reject);
        socket.on('data', (chunk: string) => {
          text += chunk;
          const done = /DONE (\S*) (\d+)\r?\n/.exec(text);
          if (done === null) return;
          const output = text.slice(0, done.index).replace(/\r/g, '');
          if (done[1] !== id) {
            // On a busy host the guest's serial driver may lose the head of a line. The rest of it named no command of ours.
            text = '';
            send();
          } else if (done[2] === '0') resolve(output);
          else reject(new Error(`guest command failed (${done[2] ?? '?'}): ${command}\n${output}`));
        });
        send();
      });
    } finally {
      clearTimeout(timer);
      socket.destroy();
    }
  }

  log(): string {
    return readFileSync(join(this.dir, 'qemu.log'), 'latin1').slice(-2000);
  }

  isAlive(): boolean {
    try {
      // A child that nobody has waited for is a zombie: dead, but still signalled without an error.
      return !/^State:\s+Z/m.test(readFileSync(`/proc/${this.pid}/status`, 'latin1'));
    } catch {
      return false;
    }
  }

  async kill(): Promise<void> {
    this.qmp.close();
    killQuietly(this.pid);
    running.delete(this.pid);
    while (this.isAlive()) await sleep(5);
  }

  /**
   * Kills the machine and removes its folder. With CAIRN_KEEP set both stay, for whoever looks why a test failed.
   * @throws when a repository in the folder is not as it should be; the machine and the folder are gone then, too
   */
  async destroy(): Promise<void> {
    await this.#end(() => removeWithRepositories(this.dir, this.damagedOnPurpose));
  }

  /** As `destroy`, but its repositories go unread: there may be more in them than is worth the time. */
  async discard(): Promise<void> {
    await this.#end(() => rmSync(this.dir, { recursive: true, force: true }));
  }

  async #end(removeFolder: () => void): Promise<void> {
    if ((process.env.CAIRN_KEEP ?? '') !== '' && this.isAlive()) {
      this.qmp.close();
      running.delete(this.pid);
      process.stderr.write(`kept: ${this.name}, process ${this.pid}, in ${this.dir}\n`);
      return;
    }
    await this.kill();
    removeFolder();
  }
}

function deviceArgs(device: LabDevice, dir: string): readonly string[] {
  switch (device) {
    case 'balloon':
      return ['-device', 'virtio-balloon-pci,id=balloon'];
    case 'net':
      return ['-netdev', 'user,id=net0,restrict=on', '-device', 'virtio-net-pci,netdev=net0,romfile='];
    case 'agent':
      return [
        ...['-chardev', `socket,id=qga0,path=${join(dir, 'qga.sock')},server=on,wait=off`],
        ...['-device', 'virtio-serial', '-device', 'virtserialport,chardev=qga0,name=org.qemu.guest_agent.0'],
      ];
    case 'vga':
      return ['-device', 'VGA'];
    case 'share': {
      const path = join(dir, 'share');
      mkdirSync(path, { recursive: true });
      return [
        ...['-fsdev', `local,id=fs0,path=${path},security_model=none`],
        ...['-device', 'virtio-9p-pci,fsdev=fs0,mount_tag=share'],
      ];
    }
    case 'disk': {
      const path = join(dir, 'disk.qcow2');
      if (!existsSync(path)) execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', path, DISK_SIZE]);
      return [
        '-drive',
        `file=${path},if=none,id=disk0,format=qcow2`,
        '-device',
        'virtio-blk-pci,drive=disk0',
      ];
    }
  }
}

async function connectHarness(dir: string, isStarting?: () => boolean): Promise<HarnessQmp> {
  try {
    return await HarnessQmp.connect(join(dir, 'harness.sock'), undefined, isStarting);
  } catch (error) {
    throw new Error(`QEMU does not answer: ${readFileSync(join(dir, 'qemu.log'), 'latin1').slice(-2000)}`, {
      cause: error,
    });
  }
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // Gone already.
  }
}
