import { describe, expect, it } from '@jest/globals';
import { Command } from 'commander';

import { kvmHypervisor } from '../../adapters/kvm/kvm-hypervisor.js';
import { libvirtHypervisor } from '../../adapters/libvirt/libvirt-hypervisor.js';
import { restoreDomain } from '../../adapters/libvirt/restore/restore.js';
import { addRestoreSettings, restoreSettingsOf } from '../../src/cli/restore-settings.js';
import {
  readSettings,
  refuseForeignSettings,
  type AnyRestoreOptions,
} from '../../src/hypervisor/restore-options.js';
import type { CheckpointSource } from '../../src/hypervisor/restore.js';
import { hypervisors } from '../../src/index.js';

const ALL = hypervisors().all;

function parsed(...argv: readonly string[]): Command {
  const command = addRestoreSettings(new Command('restore').exitOverride(), ALL);
  return command.parse(argv, { from: 'user' });
}

describe('options of restores', () => {
  it('become settings by the name of the field that they fill, and only when they are given', () => {
    const given = ['--qmp', '/run/x', '--set-arg', '-name=a', '--set-arg', '-m=1G', '--new-macs'];
    expect(restoreSettingsOf(parsed(...given).opts(), ALL)).toEqual({
      socketPath: '/run/x',
      setArgs: ['-name=a', '-m=1G'],
      newMacs: true,
    });
    expect(restoreSettingsOf(parsed().opts(), ALL)).toEqual({});
  });

  it('are listed in the help by whose they are', () => {
    const groups = parsed()
      .helpInformation()
      .split('\n\n')
      .filter((group) => group.startsWith('Of checkpoints of '))
      .map((group) => [group.split('\n', 1)[0], group.match(/--[a-z-]+/g)]);
    expect(groups).toEqual([
      [
        'Of checkpoints of kvm, libvirt:',
        ['--to', '--set-arg', '--qmp', '--guest-agent', '--freeze', '--set-time', '--lazy', '--eager'],
      ],
      ['Of checkpoints of kvm, libvirt, xen:', ['--new-name']],
      [
        'Of checkpoints of kvm:',
        [
          '--drop-arg',
          '--set-path',
          '--program',
          '--log',
          '--as-root',
          '--background',
          '--lazy',
          '--fill-rate',
          '--lazy',
        ],
      ],
      ['Of checkpoints of libvirt:', ['--new-macs', '--xml-edit']],
      ['Of checkpoints of libvirt, xen:', ['--disk']],
    ]);
  });

  it('have the same flags in every adapter that has them', () => {
    const flagsOf = new Map<string, string>();
    for (const [key, { flags }] of ALL.flatMap(({ restoreOptions }) => Object.entries(restoreOptions)))
      expect(flagsOf.set(key, flagsOf.get(key) ?? flags).get(key)).toBe(flags);
  });

  it('are refused for a checkpoint of another hypervisor, naming whose they are and what there is instead', () => {
    const refuse = (): void => {
      refuseForeignSettings(kvmHypervisor, ALL, { newMacs: true, program: '/bin/qemu' });
    };
    expect(refuse).toThrow(
      expect.objectContaining({
        code: 'USAGE',
        message: 'a checkpoint of kvm is not restored with --new-macs (an option of libvirt)',
        hint: expect.stringContaining('--set-arg'),
      }),
    );
    expect(() => {
      refuseForeignSettings(libvirtHypervisor, ALL, { newName: 'web2' });
    }).not.toThrow();
  });

  it('are not read by an adapter when they are none of its own, or of another kind', () => {
    const table: AnyRestoreOptions = {
      newName: { flags: '--new-name <name>', description: '', kind: 'text' },
    };
    expect(readSettings(table, { newName: 'web2' })).toEqual({ newName: 'web2' });
    expect(() => readSettings(table, { newName: ['web2'] })).toThrow(RangeError);
    expect(() => readSettings(table, { other: 'web2' })).toThrow(RangeError);
    expect(() => readSettings(table, { constructor: 'web2' })).toThrow(RangeError);
  });

  it('of a domain that edit its description are refused when a QEMU that waits is to get it', async () => {
    const source = { checkpointId: 'abc', machine: {} } as unknown as CheckpointSource;
    const request = { paused: false, keepDisks: false, target: 'unix:/run/incoming.sock' };
    for (const edit of [{ newName: 'web2' }, { newMacs: true as const }, { diskPaths: ['vda=/x'] }])
      await expect(restoreDomain(source, { ...request, ...edit })).rejects.toMatchObject({
        code: 'USAGE',
        message: expect.stringContaining('no domain to edit'),
      });
  });
});
