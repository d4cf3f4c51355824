/** Runs in dom0: a guest made with xl, watched through its console log. */

import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

export interface GuestOptions {
  readonly name: string;
  readonly type?: 'pvh' | 'pv' | 'hvm';
  readonly memoryMib?: number;
  readonly vcpus?: number;
  /** Random data written each second. */
  readonly churnKib?: number;
  readonly network?: boolean;
  /** Lines added to the configuration. */
  readonly extra?: readonly string[];
}

/** A line of the guest's counter: `TICK n lines n cpus n net up`. */
export interface Tick {
  readonly tick: number;
  readonly lines: number;
  readonly cpus: number;
  readonly net: string;
}

const TICK = /^TICK (\d+) lines (\d+) cpus (\d+) net (\S+)/gm;
const BOOT_LIMIT_MS = 180_000;

export function xl(...args: readonly string[]): string {
  return execFileSync('xl', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

export class XenGuest {
  readonly name: string;
  readonly address: string;
  readonly configPath: string;

  constructor(options: GuestOptions) {
    this.name = options.name;
    this.address = `xen:${options.name}`;
    this.configPath = `/tmp/${options.name}.cfg`;
    const { type = 'pvh', memoryMib = 128, vcpus = 1, churnKib = 0, network = true, extra = [] } = options;
    const lines = [
      `name="${options.name}"`,
      `type="${type}"`,
      'kernel="/lab/vmlinuz"',
      'ramdisk="/lab/guest.initrd"',
      `memory=${memoryMib}`,
      `vcpus=${vcpus}`,
      `extra="console=hvc0 quiet lab.churn=${churnKib}"`,
      ...(network ? ["vif=['script=/lab/vif-lab']"] : []),
      ...extra,
    ];
    writeFileSync(this.configPath, lines.join('\n') + '\n');
  }

  static async start(options: GuestOptions): Promise<XenGuest> {
    const guest = new XenGuest(options);
    xl('create', guest.configPath);
    await guest.waitFor((tick) => tick >= 2, BOOT_LIMIT_MS);
    return guest;
  }

  get domid(): number {
    return Number(xl('domid', this.name));
  }

  console(): string {
    const path = `/var/log/xen/console/guest-${this.name}.log`;
    return existsSync(path) ? readFileSync(path, 'latin1') : '';
  }

  /** All ticks printed so far, by every incarnation of this name. */
  ticks(): readonly Tick[] {
    return [...this.console().matchAll(TICK)].map(([, tick, lines, cpus, net = '']) => ({
      tick: Number(tick),
      lines: Number(lines),
      cpus: Number(cpus),
      net,
    }));
  }

  lastTick(): number {
    return this.ticks().at(-1)?.tick ?? 0;
  }

  async waitFor(fits: (tick: number) => boolean, limitMs = 60_000): Promise<void> {
    const until = Date.now() + limitMs;
    while (!fits(this.lastTick())) {
      if (Date.now() > until) {
        throw new Error(`${this.name} does not count on: ${this.console().slice(-600)}`);
      }
      await sleep(200);
    }
  }

  /** Waits until it has counted on by `more`. */
  async countOn(more: number, limitMs = 60_000): Promise<void> {
    const from = this.lastTick();
    await this.waitFor((tick) => tick >= from + more, limitMs);
  }

  /** The state column of xl list, such as `-b----`. */
  state(): string {
    const line = xl('list', this.name).trim().split('\n').at(-1) ?? '';
    return line.trim().split(/\s+/)[4] ?? '';
  }

  /** As xl list shows it. */
  memoryMib(): number {
    const line = xl('list', this.name).trim().split('\n').at(-1) ?? '';
    return Number(line.trim().split(/\s+/)[2]);
  }

  destroy(): void {
    xl('destroy', this.name);
  }
}
