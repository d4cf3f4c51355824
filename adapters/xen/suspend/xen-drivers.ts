/**
 * An HVM guest without Xen drivers knows nothing of a suspend, and needs to know nothing: all that it has is
 * its processors, its memory and emulated devices, and these are saved. So it is stopped from outside. One
 * with drivers must suspend itself: event channels, grants and timers are not saved.
 *
 * Source: domain_suspend_callback_common of tools/libs/light/libxl_dom_suspend.c, which tells them apart in
 * the same way.
 */

import { REASON_SUSPEND, type XenDomain } from '../domain/domain.js';

/**
 * HVM_PARAM_CALLBACK_IRQ: how the guest wants to hear of events. A guest that has not said has no drivers, or
 * has not started them yet.
 */
const CALLBACK_PARAM = 0;

/** Tells whether an HVM guest lacks Xen drivers. @throws VM_GONE, FFI_FAILED */
export function lacksXenDrivers(domain: XenDomain): boolean {
  const value = new BigUint64Array(1);
  domain.check(domain.calls.hvmParam(domain.domid, CALLBACK_PARAM, value), 'asking for the Xen drivers');
  return value[0] === 0n;
}

/**
 * The processors stop once requests to the device model that they wait for are answered.
 * @throws VM_GONE, FFI_FAILED
 */
export function suspendFromOutside(domain: XenDomain): void {
  domain.check(domain.calls.shutdown(domain.domid, REASON_SUSPEND), 'suspending');
}
