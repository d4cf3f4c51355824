/**
 * What about a domain keeps Cairn from taking a checkpoint that comes back: found out before anything is
 * suspended.
 */

import type { VmHazard } from '../../../src/hypervisor/vm.js';
import type { JsonObject } from '../../../src/types.js';
import type { DomainInfo } from '../domain/domain.js';
import { isProvenRelease, PROVEN_RELEASES, type XenVersion } from '../ffi/versions.js';
import { deviceModelHazards, type DeviceModelInventory } from './device-model-hazards.js';
import { refuse } from './refuse.js';
import { isSet, listOf, objectOf, textOf } from '../domain/xl.js';

export interface DomainInventory {
  readonly info: DomainInfo;
  readonly config: JsonObject;
  /** control/feature-suspend in xenstore. */
  readonly offersSuspend: boolean;
  readonly foreignSave: string;
  /** Version of the running hypervisor. */
  readonly xen: XenVersion;
  /** The operator asked for what is not proven yet: CAIRN_XEN_UNPROVEN=1. */
  readonly allowsUnproven: boolean;
  readonly deviceModel: DeviceModelInventory;
}

export function hazardsOf(found: DomainInventory): readonly VmHazard[] {
  const hazards = RULES.flatMap((rule) => rule(found) ?? []);
  return guestKind(found) === 'hvm' ? [...deviceModelHazards(found), ...hazards] : hazards;
}

/** `pvh`, `hvm` or `pv`. */
export function guestKind({ info, config }: Pick<DomainInventory, 'info' | 'config'>): string {
  const recorded = textOf(objectOf(config.c_info).type);
  if (recorded !== '') return recorded;
  return info.isHvm ? 'hvm' : 'pv';
}

const PAGES_PER_MIB = 256;

type Rule = (found: DomainInventory) => VmHazard | undefined;

const RULES: readonly Rule[] = [
  ({ allowsUnproven, xen }) =>
    allowsUnproven || isProvenRelease(xen)
      ? undefined
      : refuse(
          'XEN_UNPROVEN',
          `checkpoints have not been tried on Xen ${xen.major}.${xen.minor} yet, only on ${PROVEN_RELEASES.join(', ')}; ` +
            'CAIRN_XEN_UNPROVEN=1 takes them all the same, for trials (docs/xen.md)',
        ),
  (found) =>
    guestKind(found) === 'pv'
      ? {
          code: 'XEN_PV',
          text:
            `a PV guest is not tracked: in each checkpoint it stands still while all of its ` +
            `${Math.round(found.info.totalPages / PAGES_PER_MIB)} MiB are read and compared, so the stop grows with its memory`,
          effect: 'note',
        }
      : undefined,
  ({ config }) =>
    isSet(objectOf(objectOf(config.b_info)['type.pvh']).pvshim)
      ? refuse(
          'XEN_PVSHIM',
          'the guest is a PV one inside a shim (pvshim=1), a hypervisor of its own: that was not tried; PVH and PV guests are',
        )
      : undefined,
  ({ config }) =>
    listOf(config.pcidevs).length > 0
      ? refuse(
          'XEN_PASSTHROUGH',
          'a PCI device is passed through: it writes to memory unseen and cannot be saved',
        )
      : undefined,
  ({ offersSuspend, info }) =>
    !offersSuspend && !info.isSuspended
      ? refuse(
          'XEN_NO_SUSPEND',
          'the kernel of the guest does not offer to suspend (it has no Xen drivers, or is still booting)',
        )
      : undefined,
  ({ info }) =>
    info.isPaused && !info.isSuspended
      ? {
          code: 'XEN_PAUSED',
          text: 'the domain is paused: it cannot suspend itself and so cannot be checkpointed until `xl unpause`',
          effect: 'note',
        }
      : undefined,
  ({ foreignSave }) =>
    foreignSave === ''
      ? undefined
      : {
          code: 'XEN_FOREIGN_SAVE',
          text: `a save or migration is under way (${foreignSave}); checkpoints wait until it is over`,
          effect: 'note',
        },
];
