import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { CommandHook, type HookContext } from '../../src/checkpoint/pause/hooks.js';

const context: HookContext = { checkpointId: 'c1', vmAddress: 'fake:a', vmName: 'a', repository: '/srv/r' };

describe('the hook command', () => {
  let dir = '';
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-hook-'));
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  it('is told the phase and the checkpoint', async () => {
    const out = join(dir, 'out');
    await new CommandHook(
      `echo $CAIRN_PHASE $CAIRN_CHECKPOINT_ID $CAIRN_VM $CAIRN_VM_NAME $CAIRN_REPOSITORY > ${out}`,
    ).run('paused', context);
    expect(readFileSync(out, 'utf8')).toBe('paused c1 fake:a a /srv/r\n');
  });

  it.each([
    ['exit 3', 'status 3'],
    ['kill -9 $$', 'SIGKILL'],
  ])('fails the phase with `%s`, which ended with %s', async (command, ending) => {
    await expect(new CommandHook(command).run('paused', context)).rejects.toMatchObject({
      code: 'HOOK_FAILED',
      detail: { phase: 'paused' },
      message: expect.stringContaining(ending),
    });
  });

  it('is killed with all that it started when it takes too long', async () => {
    const file = join(dir, 'pid');
    const hook = new CommandHook(`sleep 20 & echo $! > ${file}; wait`, 500);
    await expect(hook.run('paused', context)).rejects.toMatchObject({ code: 'HOOK_FAILED' });
    // The signal has been sent; the kernel may still be at it. A process that nobody waits for stays as a zombie.
    const pid = readFileSync(file, 'latin1').trim();
    const until = Date.now() + 3000;
    while (isAlive(pid) && Date.now() < until) await sleep(10);
    expect(isAlive(pid)).toBe(false);
  });
});

function isAlive(pid: string): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}
