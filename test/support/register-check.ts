/**
 * A process of one thread that finds out whether anybody has changed its registers: see `register-check.s`,
 * which it is the machine code of.
 * Its memory is read from outside: counters at the start of the page behind its code.
 */

import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { gunzipSync } from 'node:zlib';

/** `code.gz` of the commands in `register-check.s`. */
const CODE = [
  'H4sIAAAAAAACA22VT2gcZRjGv42TdpGNs9UcAi64kXnT1G4hC1EKWWFGFCawQg8e6q32EAq5FNIBD8FuWBe7lGC8efBQRLEHCT14mOaw2dD8US9Wvdhb',
  '6j9ae1EETSB1fN73maYLmkOe33zffO/89pt3ZtZdELr6V/MbR6futfsjVzw/21jad55zyYPX6j+nBecw7X/sr919dmEG/ysLL+K4cDvqbrV3j7T3jiQS',
  'ZZvp0cPzfiovPBMt/bKLgWjpoUbyBM5odgOZqoYu3vHkNLJQdC59CrPrQ/jX06H6d9EaRp0/rCeFGDk1xgUxGH+e8hnwSxhPR3Txk7o4/M/ic7pgiosv',
  'cLHxReUqrtzWxXpW/S9/GBPXga3LWL46ajyHsc+Rl4fu1Ax6VWzUejgeuptlrP0z/tQkxx/Xjgf4DLia/9qzA+PnwGoZL38SuH+yLMauXB/nedUBz0lw',
  'f/uU67kJTC4vBq3Dq7Ybto8F/71J3Bz/3WX90WVP9Eb65ZKElqPSsqxI3zIQJ5o1CS2npWXZkD7yVSswYYAKBJQgoAYBRY4boAoBZQioA7j/JpS2DnIb',
  'AHUA9AFQCEAjAJUAdAJQamsxlwJQCkApAKUAlAJQCkApQC61iR06/8dinGsZUsyQaoaUM6SeIQUNqWhIyfNvse5EjhQ1pKohZQ2pa0hhQyobUnrz7t5K',
  'SYoBqSFlUPNqSS5os1ytyEXLmrw9ruOBtCxrcsVyWlYsG/KhndewRo0xHluOWoM2kWct2Zipj7v3cB9PUBcS2r3dafnSclRuI5vIHyw92bUsyT2br8jv',
  'ljXZs3H8Si2M46LltJQtGzKmApifRM52d+xByLLso/c9uaYl9BgaB//f58ew1ZPo22PYZ0tssiV22BIXPqGJvbXExlriB53QRtUCLxigAgElCKhBQJGT',
  'BqhCQBkC6pw87PPcBkAdAH0AFALQCEAlAJ0AlNpazKUAlAJQCkApAKUAlAJQCpBLPerzXMuQYoZUM6ScIfUMKWhIRUNKamvmmoYUNaSqIWUNqWtIYUMq',
  'G1Ia3f1BSVyN1JAiKOrpV+f1Tnbp6TjzpIwumG1nB35nHuNRth2jX69ZG+Glaf3syY38eCo/TvPj08ie9vLgq/szv1PNSy1fClrr+vQ+nhoeuAoWSgEf',
  'w5f1n9/5zdmUv1qRG5i605AvEHp5xAy/In5H78McBnVubobfEb+zyrV4hrWt1/Sr9/2PUapvpOim3q9oTRWa3e1m95vut1BJ3plt98PZ9kYYZV8nvz56',
  'IoaSQN10z2JU13dE8oaOFPMRfVckr+Ba9pWrZ72WCgzrKUp6in75kud0ZCUf0S9jMqL77UD35/ezTB/bIg7S5+27+uBvnR3DwK14p+/bWHrc4ta/N8VH',
  '90cIAAA=',
].join('');
const CODE_ADDRESS = 0x401000;
const DATA_ADDRESS = 0x402000;
const DATA_BYTES = 0x4000;
const PAGE_BYTES = 0x1000;

/** SIGHUP and SIGUSR2: what the program blocks. */
export const BLOCKED_SIGNALS = '0000000000000801';

export interface Checked {
  /** Calls made and found in order. */
  readonly loops: number;
  /** Number of the check that failed, in the order of the program; 0 while none has. */
  readonly failure: number;
  /** Calls that returned -EINTR. */
  readonly interrupted: number;
  /** SIGUSR1 that came in. */
  readonly handled: number;
}

export class RegisterCheck {
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  /** @param dir for the program's file */
  static async start(dir: string): Promise<RegisterCheck> {
    const path = join(dir, 'register-check');
    writeFileSync(path, program(gunzipSync(Buffer.from(CODE, 'base64'))), { mode: 0o700 });
    const check = new RegisterCheck(spawn(path, { stdio: 'ignore' }));
    await check.waitFor(({ loops }) => loops > 0);
    return check;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Undefined while it runs. */
  get deathSignal(): string | undefined {
    return this.#child.signalCode ?? undefined;
  }

  read(): Checked {
    const memory = openSync(`/proc/${this.pid}/mem`, 'r');
    try {
      const bytes = Buffer.alloc(32);
      readSync(memory, bytes, 0, bytes.length, DATA_ADDRESS);
      const [loops = 0, failure = 0, interrupted = 0, handled = 0] = [0, 8, 16, 24].map((at) =>
        Number(bytes.readBigUInt64LE(at)),
      );
      return { loops, failure, interrupted, handled };
    } finally {
      closeSync(memory);
    }
  }

  async waitFor(isReached: (checked: Checked) => boolean): Promise<Checked> {
    const until = Date.now() + 30_000;
    for (;;) {
      const checked = this.read();
      if (isReached(checked)) return checked;
      if (Date.now() > until) throw new Error(`the program does not go on: ${JSON.stringify(checked)}`);
      await sleep(1);
    }
  }

  /** Two more calls: one of them was begun and ended after this was asked. */
  async waitForProgress(): Promise<Checked> {
    const { loops, failure } = this.read();
    return failure === 0
      ? this.waitFor((checked) => checked.loops >= loops + 2 || checked.failure > 0)
      : this.read();
  }

  /** A field of /proc/PID/status. */
  status(field: string): string {
    return (
      new RegExp(`^${field}:\\s*(.*)$`, 'm').exec(readFileSync(`/proc/${this.pid}/status`, 'latin1'))?.[1] ??
      ''
    );
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.kill('SIGKILL');
    await ended;
  }
}

/** An ELF file: the code, and memory for its data. */
function program(code: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(PAGE_BYTES + code.length);
  const view = new DataView(bytes.buffer);
  // "\x7fELF", 64-bit, little-endian, version 1.
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 62, true);
  view.setUint32(20, 1, true);
  view.setBigUint64(24, BigInt(CODE_ADDRESS), true);
  view.setBigUint64(32, 64n, true);
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 3, true);
  const segments = [
    {
      type: 1,
      flags: 5,
      offset: PAGE_BYTES,
      address: CODE_ADDRESS,
      fileBytes: code.length,
      bytes: code.length,
    },
    { type: 1, flags: 6, offset: 0, address: DATA_ADDRESS, fileBytes: 0, bytes: DATA_BYTES },
    // PT_GNU_STACK: a stack that is not code.
    { type: 0x6474e551, flags: 6, offset: 0, address: 0, fileBytes: 0, bytes: 0 },
  ];
  segments.forEach((segment, i) => {
    const at = 64 + i * 56;
    view.setUint32(at, segment.type, true);
    view.setUint32(at + 4, segment.flags, true);
    view.setBigUint64(at + 8, BigInt(segment.offset), true);
    view.setBigUint64(at + 16, BigInt(segment.address), true);
    view.setBigUint64(at + 24, BigInt(segment.address), true);
    view.setBigUint64(at + 32, BigInt(segment.fileBytes), true);
    view.setBigUint64(at + 40, BigInt(segment.bytes), true);
    view.setBigUint64(at + 48, BigInt(PAGE_BYTES), true);
  });
  bytes.set(code, PAGE_BYTES);
  return bytes;
}
