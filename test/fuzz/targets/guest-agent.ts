/**
 * What a guest's agent says, which is what whoever owns the guest makes it say: the input is sent in pieces, with the number
 * of the sync in the place of `SYNC`, and then the socket is closed. The freezer asks, freezes and thaws.
 */

import { createServer } from 'node:net';
import { join } from 'node:path';

import type { PauseGuard } from '../../../adapters/guard/pause-guard.js';
import { markerOf } from '../../../adapters/guard/pause-marker.js';
import { GuestFreezer } from '../../../adapters/kvm/run/guest-agent/guest-freezer.js';
import { SocketAgent } from '../../../adapters/kvm/run/guest-agent/socket-agent.js';
import { DomainAgent } from '../../../adapters/libvirt/qemu/domain-agent.js';
import { isCheckpointError } from '../../../src/errors.js';
import { mutateText } from '../mutate-bytes.js';
import type { OpenTarget } from '../target.js';

const LIMIT_MS = 3000;
const PIECE_BYTES = 500;
const SYNC = /SYNC/g;

const WORDS = [
  ...[
    '\xff',
    '\n',
    '{',
    '}',
    '[',
    '"',
    '{"return":',
    '{"return":SYNC}\n',
    '\xff{"return":SYNC}\n',
    '{"a":',
    'null',
  ],
  ...[
    '{"error":{"desc":"no"}}\n',
    '{"error":{"desc":{"toString":1}}}\n',
    '{"return":"thawed"}\n',
    '\u001b[2J',
    '\0',
  ],
  ...[
    '{"return":2}\n',
    '{"return":-1}\n',
    '{"return":1e999}\n',
    '{"return":"frozen"}\n',
    '[[[[[[[[',
    '{}\n',
    '\ud800',
  ],
];

export const openTarget: OpenTarget = async (workDir) => {
  const path = join(workDir, 'ga');
  let said = '';
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    let heard = '';
    let hasSaid = false;
    socket.on('data', (bytes: Buffer) => {
      heard += bytes.toString('latin1');
      const id = /"id":(\d+)/.exec(heard)?.[1];
      if (id === undefined || hasSaid) return;
      hasSaid = true;
      const answer = Buffer.from(said.replace(SYNC, id), 'latin1');
      for (let at = 0; at < answer.length; at += PIECE_BYTES)
        socket.write(answer.subarray(at, at + PIECE_BYTES));
      socket.end();
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const guard: PauseGuard = {
    pausing: () => Promise.resolve(),
    running: () => undefined,
    handOver: () => undefined,
    freezing: () => Promise.resolve(),
    thawed: () => undefined,
  } as unknown as PauseGuard;

  async function freezeAndThaw(): Promise<string> {
    const freezer = new GuestFreezer({
      agent: new SocketAgent(path),
      agentPath: path,
      markerPath: join(workDir, 'frozen'),
      owner: () => Promise.resolve(markerOf('a')),
      guard: () => Promise.resolve(guard),
      releaseGuard: () => Promise.resolve(),
      isRunning: () => Promise.resolve(true),
    });
    try {
      const count = await freezer.freeze(LIMIT_MS, LIMIT_MS);
      await freezer.thaw();
      return `frozen ${count > 0}`;
    } finally {
      freezer.close();
    }
  }

  return {
    seeds: [
      Buffer.from('\xff{"return": SYNC}\n{"return": "thawed"}\n{"return": 2}\n{"return": 2}\n', 'latin1'),
      Buffer.from('half a line\n\xff{"return": SYNC}\n{"error": {"class": "x", "desc": "no"}}\n', 'latin1'),
      Buffer.from('{"return": "thawed"}', 'latin1'),
    ],
    mutate: mutateText(WORDS),
    run: async (input) => {
      said = Buffer.from(input).toString('latin1');
      // The same by way of libvirt, which hands a line on.
      const domain = { name: 'web1', agentCommand: () => Promise.resolve(said) };
      const byLibvirt = await new DomainAgent(domain).command('guest-fsfreeze-status', LIMIT_MS).then(
        (value) => typeof value,
        (error: unknown) => {
          if (!isCheckpointError(error)) throw error;
          return error.code;
        },
      );
      return `${byLibvirt} ${await freezeAndThaw()}`;
    },
  };
};
