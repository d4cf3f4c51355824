import { describe, expect, it } from '@jest/globals';

import { decideScope, type ScopeFacts } from '../../src/checkpoint/trust/scope.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';

const layout = layOut([{ id: 'pc.ram', sizeBytes: 1 << 20 }]);
const unbroken: ScopeFacts = {
  forceBase: false,
  parent: { id: 'p1', layout },
  layout,
  ledger: { state: 'clean', token: 't1', repositoryId: 'r1', chain: 'web1', checkpointId: 'p1' },
  tracker: { seesWrites: true, token: 't1' },
  trackerReason: '',
  repositoryId: 'r1',
  chain: 'web1',
};

describe('the scope of a checkpoint', () => {
  it('trusts the tracker when its record is unbroken since the parent', () => {
    expect(decideScope(unbroken)).toEqual({ kind: 'dirty', reason: '' });
  });

  it('is a base without a parent, or when one is asked for', () => {
    expect(decideScope({ ...unbroken, parent: null }).kind).toBe('base');
    expect(decideScope({ ...unbroken, forceBase: true }).kind).toBe('base');
  });

  const ledger = unbroken.ledger!;
  it.each<[string, Partial<ScopeFacts>]>([
    ['the tracker was armed anew', { tracker: { seesWrites: true, token: 't2' } }],
    ['nothing is known of this run', { ledger: undefined }],
    ['bits are owed by a checkpoint that was cut off', { ledger: { ...ledger, state: 'owed' } }],
    ['the last checkpoint went to another repository', { ledger: { ...ledger, repositoryId: 'r2' } }],
    ['the last checkpoint went to another chain', { ledger: { ...ledger, chain: 'web2' } }],
    [
      'the parent is not the checkpoint the tracker counts from',
      { ledger: { ...ledger, checkpointId: 'p0' } },
    ],
    ['memory was plugged', { layout: layOut([{ id: 'pc.ram', sizeBytes: 2 << 20 }]) }],
    ['nobody knows what the VM was rewound to', { isRewindKnown: false }],
    ['the tracker cannot tell', { tracker: { seesWrites: false, token: 't1' } }],
  ])('compares all pages, and says why, when %s', (_, change) => {
    const scope = decideScope({ ...unbroken, ...change });
    expect(scope.kind).toBe('compare');
    expect(scope.reason).not.toBe('');
  });

  it('names what stands in the way of a tracker, and the price', () => {
    const { reason } = decideScope({
      ...unbroken,
      tracker: { seesWrites: false, token: 't1' },
      trackerReason: 'log-dirty: not for this guest',
    });
    expect(reason).toContain('log-dirty: not for this guest');
    expect(reason).toContain('all pages are read while the VM stands still');
  });
});
