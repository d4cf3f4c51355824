/** The two ways of capture, each by a tracker of the fake VM: the fault suites run for both. */

import { FAKE_PICTURE_TRACKER, FAKE_TRACKER, type FakeMethod } from './fake-vm.js';

export interface CaptureUnderTest {
  readonly capture: 'copying' | 'picture';
  readonly tracker: string;
}

export const CAPTURES: readonly CaptureUnderTest[] = [
  { capture: 'copying', tracker: FAKE_TRACKER },
  { capture: 'picture', tracker: FAKE_PICTURE_TRACKER },
];

/** What a checkpoint calls on the way to its manifest, and why one of the captures does not. */
const FAULTS: readonly {
  readonly method: FakeMethod;
  readonly not?: Partial<Record<CaptureUnderTest['capture'], string>>;
}[] = [
  { method: 'memoryLayout' },
  { method: 'disks' },
  { method: 'beginCheckpoint' },
  { method: 'collect' },
  {
    method: 'runState',
    not: { picture: 'its own hypervisor has the live phase, and knows whether the VM runs' },
  },
  { method: 'checkStorage' },
  { method: 'freeze', not: { picture: 'refused: the guest would be frozen while all its memory is sent' } },
  { method: 'approach', not: { copying: 'the engine has the live rounds' } },
  { method: 'pause' },
  { method: 'snapshotDisks' },
  { method: 'saveDeviceState' },
  { method: 'thaw', not: { picture: 'nothing is frozen' } },
  { method: 'takeDeviceState' },
  { method: 'inspect' },
];

export const CAPTURE_FAULTS = CAPTURES.flatMap((captured) =>
  FAULTS.filter(({ not }) => not?.[captured.capture] === undefined).map(({ method }) => ({
    ...captured,
    method,
  })),
);
