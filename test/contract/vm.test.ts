import * as jest from '@jest/globals';

import { FAKE_TRACKER, FakeVm } from '../support/fake-vm.js';
import { FakeGuest } from '../support/fake-guest.js';
import { describeVm, type VmAbilities } from './vm.js';

const ABILITIES: VmAbilities = {
  trackerKind: FAKE_TRACKER,
  unusableTrackers: [],
  freeze: 'works',
  foreignPause: 'kept',
  snapshotModes: [],
  alwaysDirtyPages: 0,
  hypervisorPages: 0,
};

describeVm(jest, 'fake', ABILITIES, () => {
  const guest = new FakeGuest();
  let written = 0;
  return Promise.resolve({
    attach: () => Promise.resolve(new FakeVm(guest)),
    operator: () => {
      const set = (state: 'running' | 'paused') => () => {
        guest.state = state;
        return Promise.resolve();
      };
      return Promise.resolve({ pause: set('paused'), resume: set('running') });
    },
    disturb: () => {
      for (const page of [3, 4, 5, 700]) guest.write(page, Uint8Array.of(++written, 1, 2, 3), 100);
      guest.discard(4);
      return Promise.resolve();
    },
    destroy: () => {
      guest.dispose();
      return Promise.resolve();
    },
  });
});
