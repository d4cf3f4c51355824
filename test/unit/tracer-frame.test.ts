import { describe, expect, it } from '@jest/globals';

import { REG, REG_COUNT } from '../../adapters/kvm/trackers/pagemap-scan/tracer/ptrace.js';
import { letsPass } from '../../adapters/kvm/trackers/pagemap-scan/tracer/seccomp.js';
import { buildSignalFrame, resumed } from '../../adapters/kvm/trackers/pagemap-scan/tracer/signal-frame.js';

const XSTATE_BYTES = 832;
const TILES_BYTES = 8192;
const TILES = 1n << 18n;

/** Of a thread in ppoll(2) whose stop the kernel has answered with `result`. */
function interruptedBy(result: number): BigUint64Array {
  const registers = new BigUint64Array(REG_COUNT);
  registers[REG.rax] = BigInt.asUintN(64, BigInt(result));
  registers[REG.origRax] = 271n;
  registers[REG.rip] = 0x1002n;
  registers[REG.rsp] = 0x7fff_0000_1238n;
  return registers;
}

function extendedState(features: bigint, inUse: bigint, sizeBytes: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(sizeBytes));
  view.setBigUint64(464, features, true);
  view.setBigUint64(512, inUse, true);
  return new Uint8Array(view.buffer);
}

function frameWith(state: Uint8Array): ReturnType<typeof buildSignalFrame> {
  return buildSignalFrame({
    registers: interruptedBy(0),
    signalMask: 0x801n,
    extendedState: state,
    returnAddress: 0x2000n,
  });
}

describe('an interrupted call', () => {
  it.each([-512, -513, -514])('that returned %i to the kernel is made once more', (result) => {
    const registers = resumed(interruptedBy(result))!;
    expect([registers[REG.rax], registers[REG.rip]]).toEqual([271n, 0x1000n]);
  });

  it.each([-511, -515, -4, 0, 7])('that returned %i has returned', (result) => {
    expect(resumed(interruptedBy(result))).toEqual(interruptedBy(result));
  });

  it('that only the kernel can go on with is left to it', () => {
    expect(resumed(interruptedBy(-516))).toBeUndefined();
  });
});

describe('a signal frame', () => {
  it('lies below the red zone, its vector registers at a multiple of 64', () => {
    const { address, bytes } = frameWith(extendedState(7n, 7n, XSTATE_BYTES))!;
    expect(address + BigInt(bytes.length)).toBeLessThanOrEqual(0x7fff_0000_1238n - 128n);
    const view = new DataView(bytes.buffer);
    expect(view.getBigUint64(0, true)).toBe(0x2000n);
    const vectors = view.getBigUint64(8 + 40 + 184, true);
    expect(vectors % 64n).toBe(0n);
    const at = Number(vectors - address);
    expect(view.getUint32(at + 464, true)).toBe(0x46505853);
    expect(view.getUint32(at + 464 + 16, true)).toBe(XSTATE_BYTES);
    expect(view.getUint32(at + XSTATE_BYTES, true)).toBe(0x46505845);
  });

  it('has no room for the tiles of AMX: left out when they are not in use, refused when they are', () => {
    const features = 7n | TILES;
    const unused = frameWith(extendedState(features, 7n, XSTATE_BYTES + TILES_BYTES))!;
    expect(unused.bytes).toHaveLength(frameWith(extendedState(7n, 7n, XSTATE_BYTES))!.bytes.length);
    expect(frameWith(extendedState(features, features, XSTATE_BYTES + TILES_BYTES))).toBeUndefined();
    expect(frameWith(new Uint8Array(512))).toBeUndefined();
  });
});

describe('a seccomp filter', () => {
  const call = { number: 323, instructionPointer: 0n, args: [1] };
  const filter = (...program: readonly (readonly [number, number, number, number])[]): Uint8Array => {
    const view = new DataView(new ArrayBuffer(4096 * 8));
    program.forEach(([code, ifTrue, ifFalse, constant], i) => {
      view.setUint16(i * 8, code, true);
      view.setUint8(i * 8 + 2, ifTrue);
      view.setUint8(i * 8 + 3, ifFalse);
      view.setUint32(i * 8 + 4, constant, true);
    });
    return new Uint8Array(view.buffer);
  };

  it('lets a call pass that it allows, or makes fail', () => {
    for (const action of [0x7fff0000, 0x7ffc0000, 0x00050001])
      expect(letsPass(filter([0x06, 0, 0, action]), call)).toBe(true);
  });

  it('is in the way when it ends the process or the thread, sends a signal, or asks somebody', () => {
    for (const action of [0x80000000, 0, 0x00030000, 0x7fc00000])
      expect(letsPass(filter([0x06, 0, 0, action]), call)).toBe(false);
  });

  it('is run: number, argument, masks, sums and memory', () => {
    const program = filter(
      [0x20, 0, 0, 16],
      [0x02, 0, 0, 3],
      [0x20, 0, 0, 0],
      [0x61, 0, 0, 3],
      [0x0c, 0, 0, 0],
      [0x54, 0, 0, 0xff],
      [0x15, 1, 0, (323 + 1) & 0xff],
      [0x06, 0, 0, 0],
      [0x05, 0, 0, 1],
      [0x06, 0, 0, 0],
      [0x06, 0, 0, 0x7fff0000],
    );
    expect(letsPass(program, call)).toBe(true);
    expect(letsPass(program, { ...call, args: [2] })).toBe(false);
  });

  it('that is not understood lets nothing pass', () => {
    expect(letsPass(filter([0x40, 0, 0, 0], [0x06, 0, 0, 0x7fff0000]), call)).toBe(false);
    expect(letsPass(filter([0x20, 0, 0, 64], [0x06, 0, 0, 0x7fff0000]), call)).toBe(false);
    expect(letsPass(filter(), call)).toBe(false);
  });
});
