/**
 * Looks at the screen of a guest over VNC (RFB 3.3, RFC 6143), and at nothing of what it sees. Only while somebody looks does QEMU ask the hypervisor
 * which pages of the graphics card's memory were written to, and the hypervisor then reads and clears marks of its own for these pages.
 */

import { connect, type Socket } from 'node:net';

const FIRST_PORT = 5900;
const ASK_EVERY_MS = 100;
const SERVER_INIT_BYTES = 24;
const UPDATE_REQUEST = 3;

export class ScreenViewer {
  readonly #socket: Socket;
  #step: 'version' | 'security' | 'init' | 'pictures' = 'version';
  #received = 0;
  #timer: NodeJS.Timeout | undefined;

  /** Of the only guest that has a VNC server. */
  constructor() {
    this.#socket = connect({ host: '127.0.0.1', port: FIRST_PORT });
    this.#socket.on('data', (bytes) => this.#receive(bytes));
    // Ends with the guest's QEMU.
    this.#socket.on('error', () => undefined);
    this.#socket.on('close', () => clearInterval(this.#timer));
  }

  /** Of the screen's contents. */
  get receivedBytes(): number {
    return this.#received;
  }

  close(): void {
    this.#socket.destroy();
  }

  #receive(bytes: Buffer): void {
    if (this.#step === 'version') {
      this.#socket.write('RFB 003.003\n');
      this.#step = 'security';
    } else if (this.#step === 'security') {
      // No password was asked for: one byte, "leave others connected".
      this.#socket.write(Uint8Array.of(1));
      this.#step = 'init';
    } else if (this.#step === 'init') {
      if (bytes.length < SERVER_INIT_BYTES) throw new Error(`${bytes.length} bytes of a VNC server's start`);
      this.#step = 'pictures';
      // The whole screen once, then what changes, which may be nothing.
      this.#ask(bytes.subarray(0, 4), false);
      this.#timer = setInterval(() => this.#ask(bytes.subarray(0, 4), true), ASK_EVERY_MS);
    } else {
      this.#received += bytes.length;
    }
  }

  /** @param size of the screen, as the server wrote it */
  #ask(size: Buffer, isIncremental: boolean): void {
    const fromCorner = Buffer.from([UPDATE_REQUEST, isIncremental ? 1 : 0, 0, 0, 0, 0]);
    this.#socket.write(Buffer.concat([fromCorner, size]));
  }
}
