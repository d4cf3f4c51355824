/**
 * What a QMP socket sends, byte by byte: the input is all that the server says, in pieces, and then it hangs up. The client
 * greets, asks three questions and listens for events.
 */

import { createServer, type Server } from 'node:net';
import { join } from 'node:path';

import { QmpClient } from '../../../adapters/qemu/qmp-client.js';
import { isCheckpointError } from '../../../src/errors.js';
import { GREETING } from '../../support/fake-qmp-server.js';
import { mutateText } from '../mutate-bytes.js';
import type { OpenTarget } from '../target.js';

const PIECE_BYTES = 700;
/** The server says everything at once, so nobody waits for as long as this. */
const LIMIT_MS = 5000;

const WORDS = [
  ...['{', '}', '[', ']', '\n', '\r\n', '"', ',', ':', '{"a":', 'null', '\u0000', '"id":"cairn-1"', '1e999'],
  ...['{"return":{},"id":"cairn-1"}\n', '{"return":[],"id":"cairn-2"}\n', '{"return":1,"id":"cairn-3"}\n'],
  ...['{"error":{"class":"GenericError","desc":"no"},"id":"cairn-2"}\n', '{"error":1}\n', '{"QMP":1}\n'],
  ...[
    '{"event":"STOP"}\n',
    '{"event":1,"data":[]}\n',
    '"id":7',
    '"__proto__":',
    '\\ud800',
    '"desc":{"toString":1}',
  ],
];

const replies = (...lines: readonly string[]): Uint8Array =>
  Buffer.from([GREETING, '{"return": {}, "id": "cairn-1"}\r\n', ...lines].join(''));

export const openTarget: OpenTarget = async (workDir) => {
  const path = join(workDir, 'qmp');
  let said: Uint8Array = new Uint8Array(0);
  const server: Server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.resume();
    for (let at = 0; at < said.length; at += PIECE_BYTES) socket.write(said.subarray(at, at + PIECE_BYTES));
    socket.end();
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return {
    seeds: [
      replies(
        '{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n',
        '{"return": {"status": "running", "running": true}, "id": "cairn-2"}\r\n',
        '{"error": {"class": "CommandNotFound", "desc": "no such command"}, "id": "cairn-3"}\r\n',
        '{"event": "MIGRATION", "data": {"status": "active"}}\r\n',
        '{"return": [], "id": "cairn-4"}\r\n',
      ),
      replies('{"return": [{"a": [1, 2, {"b": "c"}]}], "id": "cairn-2"}\r\n'),
      replies(),
      Buffer.from(GREETING),
    ],
    mutate: mutateText(WORDS),
    run: async (input) => {
      said = input;
      const client = await QmpClient.connect(path, {
        greetingTimeoutMs: LIMIT_MS,
        commandTimeoutMs: LIMIT_MS,
      });
      let events = 0;
      client.onEvent(({ event, data }) => (events += event.length >= 0 && typeof data === 'object' ? 1 : 0));
      const ends = await Promise.allSettled(
        ['query-status', 'query-block', 'query-migrate'].map((command) => client.execute(command)),
      );
      await client.close();
      const words = ends.map((end) => {
        if (end.status === 'fulfilled') return typeof end.value;
        if (!isCheckpointError(end.reason)) throw end.reason;
        return end.reason.code;
      });
      return `${words.join(' ')} events ${Math.min(events, 3)}`;
    },
  };
};
