/** Attaches to the VM of an address `xen:NAME`. */

import { readFileSync } from 'node:fs';

import { CheckpointError } from '../../src/errors.js';
import type { AttachOptions } from '../../src/hypervisor/hypervisor.js';
import type { GuardProgram } from '../guard/pause-guard.js';
import { DeviceModel } from './devices/device-model.js';
import { XenDomain } from './domain/domain.js';
import { bindXen } from './ffi/bind.js';
import { foreignSave } from './inspect/foreign-save.js';
import { guestKind } from './inspect/hazards.js';
import { xenVersion } from './domain/host.js';
import { XenVm } from './xen-vm.js';
import { domainConfig, domainIdOf, objectOf, textOf } from './domain/xl.js';

const SCHEME = 'xen:';

/** Name, id or uuid of the domain. @throws VM_ADDRESS */
export function domainNameOf(address: string): string {
  const name = address.startsWith(SCHEME) ? address.slice(SCHEME.length) : '';
  if (name !== '' && !name.startsWith('-')) return name;
  throw new CheckpointError('VM_ADDRESS', `"${address}" is not the address of a Xen domain`, {
    hint: 'for example xen:web1',
  });
}

/**
 * @param guard undefined: the guard of this adapter; the lab puts another one
 * @throws VM_ADDRESS, VM_UNREACHABLE, VM_PERMISSION, VM_UNSUPPORTED, VM_GONE, VM_BUSY, FFI_FAILED, USAGE
 */
export async function attachXen(
  address: string,
  { runtimeDir, diskOptions }: AttachOptions,
  guard?: GuardProgram,
): Promise<XenVm> {
  const name = domainNameOf(address);
  // Xen's libraries are loaded here, and by nobody who uses another kind of address.
  const calls = bindXen(xenVersion());
  try {
    const domid = await domainIdOf(name);
    const domain = new XenDomain(calls, domid);
    const config = await domainConfig(domid);
    const isEmulated = guestKind({ info: domain.info(), config }) === 'hvm';
    return await XenVm.attach(
      {
        address,
        runtimeDir,
        name: textOf(objectOf(config.c_info).name),
        uuid: domain.info().uuid,
        config,
        diskOptions,
        bootId: readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').slice(0, 8),
      },
      {
        domain,
        foreignSave: () => foreignSave(domid),
        deviceModel: isEmulated ? new DeviceModel(domid) : undefined,
        ...(guard === undefined ? {} : { guard }),
      },
    );
  } catch (error) {
    calls.close();
    throw error;
  }
}
