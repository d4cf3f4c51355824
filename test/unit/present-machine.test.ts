import { describe, expect, it } from '@jest/globals';

import { PresentMachine } from '../../adapters/kvm/inspect/present-machine.js';
import type { Monitor } from '../../adapters/qemu/monitor.js';

describe('a machine whose command line is not UTF-8', () => {
  const argv = ['qemu', '-drive', 'file=d\uFFFD.qcow2,if=virtio'];

  it('is refused, for no manifest could hold what it was started by', async () => {
    const machine = new PresentMachine(bareQemu(), process.pid, { argv, cwd: '/' });
    await expect(machine.check()).rejects.toMatchObject({
      code: 'VM_UNSUPPORTED',
      detail: { hazard: 'NOT_UTF8' },
      hint: expect.stringContaining('rename'),
    });
    expect(await machine.hazards()).toEqual([
      expect.objectContaining({ code: 'NOT_UTF8', effect: 'refuse' }),
    ]);
  });

  it('is taken when the operator sees to how it is restored', async () => {
    const machine = new PresentMachine(bareQemu(), process.pid, { argv, cwd: '/' }, true);
    await machine.check();
    expect(await machine.hazards()).toEqual([expect.objectContaining({ code: 'NOT_UTF8', effect: 'note' })]);
  });
});

/** Without drives and devices. */
function bareQemu(): Monitor {
  return {
    execute: () => Promise.resolve([]),
    onEvent: () => () => undefined,
    close: () => Promise.resolve(),
  };
}
