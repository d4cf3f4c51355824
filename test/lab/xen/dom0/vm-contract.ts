/** Runs in dom0: the contract that every VM adapter keeps to, on guests of each type. */

import { setTimeout as sleep } from 'node:timers/promises';

import { attachXen } from '../../../../adapters/xen/attach.js';
import { requestSuspend } from '../../../../adapters/xen/domain/xenstore.js';
import { resumeDomain } from '../../../../adapters/xen/suspend/resume-domain.js';
import { describeVm, type VmAbilities } from '../../../contract/vm.js';
import { runSuite } from '../../../support/run-suite.js';
import { PAUSE_LIMIT_MS } from './chain.js';
import { check, type Context, type Figures } from './harness.js';
import { withDomain } from './oracle.js';
import { XenGuest, type GuestOptions } from './xen-guest.js';

const ABILITIES: Readonly<Record<NonNullable<GuestOptions['type']>, VmAbilities>> = {
  pvh: {
    trackerKind: 'log-dirty',
    unusableTrackers: [],
    freeze: 'absent',
    foreignPause: 'kept',
    snapshotModes: [],
    // Each frame that a backend may write to: rings, and buffers of the network card.
    alwaysDirtyPages: 1024,
    // The page that hypervisor and guest share.
    hypervisorPages: 1,
  },
  hvm: {
    trackerKind: 'log-dirty',
    unusableTrackers: [],
    freeze: 'absent',
    // Nobody can tell whether its device model stands still as well.
    foreignPause: 'refused',
    snapshotModes: [],
    alwaysDirtyPages: 1024,
    // The page that hypervisor and guest share.
    hypervisorPages: 1,
  },
  pv: {
    trackerKind: undefined,
    // Xen tracks PV guests only when it was built with shadow paging.
    unusableTrackers: ['log-dirty'],
    freeze: 'absent',
    foreignPause: 'kept',
    snapshotModes: [],
    alwaysDirtyPages: 0,
    hypervisorPages: 0,
  },
};

/** All cases are run; then it throws when one of them failed. */
export async function vmContract(
  name: string,
  type: NonNullable<GuestOptions['type']>,
  { dir, say }: Context,
): Promise<Figures> {
  const results = await runSuite(
    (runner) =>
      describeVm(runner, type, { ...ABILITIES[type], pauseLimitMs: PAUSE_LIMIT_MS }, async () => {
        const guest = await XenGuest.start({ name, type, churnKib: 128 });
        return {
          attach: () => attachXen(guest.address, { runtimeDir: dir }),
          operator: () =>
            Promise.resolve({ pause: () => suspend(guest.domid), resume: () => wakeUp(guest.domid) }),
          disturb: () => guest.countOn(2),
          destroy: () => {
            guest.destroy();
            return Promise.resolve();
          },
        };
      }),
    (result) => say(`${result.error === undefined ? 'passed' : 'FAILED'}: ${result.name}`),
  );
  const failed = results.filter(({ error }) => error !== undefined);
  check(failed.length === 0, failed.map((result) => `${result.name}: ${result.error ?? ''}`).join('\n'));
  return { passed: results.length };
}

/** As `xl save` begins. */
async function suspend(domid: number): Promise<void> {
  withDomain(domid, ({ calls }) => requestSuspend(calls, domid));
  while (!withDomain(domid, (domain) => domain.info().isSuspended)) await sleep(50);
}

function wakeUp(domid: number): Promise<void> {
  withDomain(domid, resumeDomain);
  return Promise.resolve();
}
