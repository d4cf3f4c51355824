/** What dirty pages are made smaller with elsewhere (see delta.c), and the limits of this machine's memory. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';

import koffi from 'koffi';

import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { buildPeer } from './build.js';

type Native = (...args: readonly unknown[]) => number | bigint;

export interface DeltaPeers {
  readonly xbzrleEncode: Native;
  readonly xbzrleDecode: Native;
  readonly wordRunsEncode: Native;
  readonly lz4Encode: Native;
  readonly zstdEncode: Native;
  readonly zstdPatchEncode: Native;
  readonly readAll: Native;
  readonly compareAll: Native;
}

/** QEMU's record of an XBZRLE page: address and flags 8, kind 1, length 2. Of a whole page: address and flags 8. */
const XBZRLE_HEADER_BYTES = 11;
const WHOLE_HEADER_BYTES = 8;

export function deltaPeers(): DeltaPeers {
  const library = koffi.load(buildPeer('delta', ['-O3', '-march=native'], ['-lzstd', '-llz4']));
  const bind = (signature: string): Native => library.func(`uint64_t ${signature}`) as Native;
  const encode = '(const void *, const void *, uint64_t, void *, void *)';
  return {
    xbzrleEncode: bind(`xbzrle_encode${encode}`),
    xbzrleDecode: bind('xbzrle_decode(void *, uint64_t, const void *, const void *)'),
    wordRunsEncode: bind(`word_runs_encode${encode}`),
    lz4Encode: bind('lz4_encode(const void *, uint64_t, void *, uint64_t)'),
    zstdEncode: bind('zstd_encode(const void *, uint64_t, void *, uint64_t, int)'),
    zstdPatchEncode: bind('zstd_patch_encode(const void *, const void *, uint64_t, void *, uint64_t, int)'),
    readAll: bind('read_all(const void *, uint64_t)'),
    compareAll: bind('compare_all(const void *, const void *, uint64_t)'),
  };
}

export interface PeerSize {
  readonly peer: string;
  readonly sizeBytes: number;
  readonly ms: number;
}

/** One checkpoint's dirty pages through every peer. Peers pay for their own page headers where they define some, else nothing. */
export function peerSizes(peers: DeltaPeers, before: Uint8Array, after: Uint8Array): readonly PeerSize[] {
  const count = after.length / PAGE_SIZE_BYTES;
  const out = new Uint8Array(after.length + (after.length >>> 3) + 4096);
  const lengths = new Uint16Array(count);
  const timed = (peer: string, sizeOf: () => number): PeerSize => {
    const started = performance.now();
    const sizeBytes = sizeOf();
    if (!(sizeBytes > 0) && count > 0 && !peer.startsWith('XBZRLE') && !peer.startsWith('word runs'))
      throw new Error(`${peer} failed`);
    return { peer, sizeBytes, ms: performance.now() - started };
  };
  return [
    { peer: 'whole pages', sizeBytes: after.length, ms: Number.NaN },
    timed('whole pages, zstd -3', () => Number(peers.zstdEncode(after, count, out, out.length, 3))),
    timed('XBZRLE', () => {
      const bytes = Number(peers.xbzrleEncode(before, after, count, out, lengths));
      return lengths.reduce((sum, length) => sum + headerBytes(length), bytes);
    }),
    timed('word runs (old Remus)', () => Number(peers.wordRunsEncode(before, after, count, out, lengths))),
    timed('whole pages, LZ4', () => Number(peers.lz4Encode(after, count, out, out.length))),
    timed('zstd -3 --patch-from', () =>
      Number(peers.zstdPatchEncode(before, after, count, out, out.length, 3)),
    ),
    xdelta(before, after),
  ];
}

function headerBytes(length: number): number {
  if (length === 0) return 0;
  return length === PAGE_SIZE_BYTES ? WHOLE_HEADER_BYTES : XBZRLE_HEADER_BYTES;
}

/** The program itself, on files in memory; its time includes starting it. */
function xdelta(before: Uint8Array, after: Uint8Array): PeerSize {
  const dir = mkdtempSync('/dev/shm/cairn-bench-');
  try {
    const [old, now, out] = [join(dir, 'old'), join(dir, 'new'), join(dir, 'out')];
    writeFileSync(old, before);
    writeFileSync(now, after);
    const started = performance.now();
    execFileSync('xdelta3', ['-e', '-f', '-s', old, now, out]);
    return { peer: 'xdelta3', sizeBytes: statSync(out).size, ms: performance.now() - started };
  } finally {
    rmSync(dir, { recursive: true });
  }
}
