/**
 * What disk drivers are given by whoever opens them. Where hypervisors differ (who takes a snapshot inside of
 * an image, who tells that an image is in use), the difference comes in here; no driver asks which hypervisor
 * it works for.
 */

import type { JsonObject } from '../../src/types.js';
import type { DiskDriver } from '../../src/hypervisor/disk-driver.js';
import type { DiskDriverTraits } from '../../src/hypervisor/disks.js';
import type { DiskDriverOptions } from '../../src/hypervisor/hypervisor.js';
import type { ImageSnapshots, OverlaySnapshots } from './qcow2/snapshot-takers.js';

export interface DiskMeans {
  /** Absolute; what relative paths of the hypervisor start from. */
  readonly cwd: string;
  /** Takes and removes snapshots inside of qcow2 images. Undefined: nobody here can. */
  readonly images?: ImageSnapshots | undefined;
  /** Puts overlays on qcow2 images of a running VM. Undefined: nobody here can. */
  readonly overlays?: OverlaySnapshots | undefined;
  /** Where locks on images do not tell that one is in use. @throws RESTORE_TARGET_BUSY */
  readonly refuseInUse?: ((path: string) => Promise<void>) | undefined;
  /** Drivers that were not tried with the hypervisor, with what is said of their disks. */
  readonly untried?: Readonly<Record<string, string>>;
  readonly options?: DiskDriverOptions | undefined;
}

/** A driver that can be opened: what the registration in `disk-drivers.ts` lists. */
export interface DiskDriverKind extends DiskDriverTraits {
  /** Options of the command line that are this driver's alone. */
  readonly settings?: readonly DiskSetting[];
  /** Asks nobody yet. @throws USAGE for a setting that makes no sense */
  open(means: DiskMeans): DiskDriver;
}

export interface DiskSetting {
  /** Such as `--lvm-size <size>`. */
  readonly flags: string;
  readonly description: string;
  /** The option's name among the driver's own options. */
  readonly key: string;
}

/** The options of one driver. */
export function optionsFor({ options }: DiskMeans, driver: string): JsonObject {
  return options?.[driver] ?? {};
}
