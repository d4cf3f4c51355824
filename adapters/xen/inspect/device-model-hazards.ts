/**
 * Tells which HVM guests have a device model of the kind that checkpoints were proven with: the QEMU of today
 * in dom0, SeaBIOS, network and disks by PV drivers or emulated by QEMU. What else the configuration can give
 * a guest is refused by name.
 *
 * Source of the names: tools/libs/light/libxl_types.idl of Xen (libxl_domain_build_info).
 */

import type { VmHazard } from '../../../src/hypervisor/vm.js';
import type { Json, JsonObject } from '../../../src/types.js';
import type { XenDomain } from '../domain/domain.js';
import type { XenVersion } from '../ffi/versions.js';
import { refuse } from './refuse.js';
import { isSet, listOf, objectOf, textOf } from '../domain/xl.js';
import { storeText } from '../domain/xenstore.js';

const QEMU_OF_TODAY = 'qemu_xen';
const FIRMWARE = 'seabios';
const DEFAULT_VGA = 'cirrus';
/**
 * The one network card that was tried, among the cards that QEMU emulates beside the PV one: xl's default.
 */
const PROVEN_NIC = 'rtl8139';
const PROVEN_VGA: readonly string[] = ['none', 'cirrus', 'std'];

/** Options that are set when there is anything in them, and what they bring. */
const UNPROVEN_OPTIONS: Readonly<Record<string, string>> = {
  extra: 'options of its own (device_model_args)',
  extra_hvm: 'options of its own (device_model_args_hvm)',
  'type.hvm.soundhw': 'a sound card',
  'type.hvm.usbdevice': 'a USB device',
  'type.hvm.usbdevice_list': 'USB devices',
  'type.hvm.usb': 'a USB controller',
  'type.hvm.usbversion': 'a USB controller',
  'type.hvm.vendor_device': 'a PCI device for its drivers (vendor_device)',
  'type.hvm.viridian': 'the interfaces of Hyper-V (viridian)',
  'type.hvm.viridian_enable': 'the interfaces of Hyper-V (viridian)',
  'type.hvm.altp2m': 'alternate memory maps (altp2m)',
  altp2m: 'alternate memory maps (altp2m)',
  'type.hvm.firmware': 'a loader of its own (firmware_override)',
  'type.hvm.system_firmware': 'firmware of its own (bios_path_override)',
};

/** What is looked at of an HVM guest; nothing is of all others. */
export interface DeviceModelInventory {
  /** The kind as libxl notes it down in xenstore: `qemu_xen`. */
  readonly kind: string;
  /** The domain that it runs in; empty for dom0. */
  readonly domain: string;
  /** Why it cannot be used, found out by asking it. */
  readonly problem: string;
  /** Whether QEMU has moved memory elsewhere in the guest (nodes physmap/ in xenstore). */
  readonly hasMovedMemory: boolean;
}

interface Found {
  readonly config: JsonObject;
  readonly deviceModel: DeviceModelInventory;
  /** Version of the running hypervisor. */
  readonly xen: XenVersion;
}

export function deviceModelHazards(found: Found): readonly VmHazard[] {
  return RULES.flatMap((rule) => rule(found) ?? []);
}

/** @param problem see `DeviceModelInventory` */
export function deviceModelInventory({ calls, domid }: XenDomain, problem: string): DeviceModelInventory {
  return {
    kind: storeText(calls, `/libxl/${domid}/dm-version`) ?? '',
    domain: storeText(calls, `/local/domain/${domid}/image/device-model-domid`) ?? '',
    problem,
    hasMovedMemory: storeText(calls, `/local/domain/0/device-model/${domid}/physmap`) !== undefined,
  };
}

type Rule = (found: Found) => VmHazard | readonly VmHazard[] | undefined;

const RULES: readonly Rule[] = [
  ({ config, deviceModel }) =>
    deviceModel.domain !== '' || isSet(objectOf(config.b_info).device_model_stubdomain)
      ? refuse('XEN_STUBDOM', 'the device model runs in a domain of its own (a stub domain): not tried')
      : undefined,
  ({ deviceModel: { kind } }) =>
    kind === QEMU_OF_TODAY
      ? undefined
      : refuse(
          'XEN_TRADITIONAL',
          `the device model is "${kind}": only QEMU without changes (qemu-xen) is supported`,
        ),
  ({ config }) => {
    const kind = textOf(objectOf(hvmOf(config).vga).kind) || DEFAULT_VGA;
    return PROVEN_VGA.includes(kind)
      ? undefined
      : refuse(
          'XEN_VGA',
          `the guest has the graphics card ${kind}: only ${PROVEN_VGA.join(', ')} were tried`,
        );
  },
  ({ config, xen }) =>
    keepsScreenApart(xen) || textOf(objectOf(hvmOf(config).vnc).enable) === 'False'
      ? undefined
      : refuse(
          'XEN_DISPLAY',
          `the screen of the guest is shown over VNC, which is the default, and Xen ${xen.major}.${xen.minor} then switches log-dirty ` +
            'tracking on by itself, for the screen alone; vnc=0 in its configuration switches it off',
        ),
  ({ config }) => {
    const firmware = textOf(hvmOf(config).bios);
    if (firmware === '' || firmware === FIRMWARE) return undefined;
    return refuse('XEN_FIRMWARE', `the guest has the firmware ${firmware}: only ${FIRMWARE} was tried`);
  },
  ({ config }) =>
    isSet(objectOf(config.b_info).nested_hvm) || isSet(hvmOf(config).nested_hvm)
      ? refuse('XEN_NESTED_HVM', 'the guest may run guests of its own (nestedhvm=1): not tried')
      : undefined,
  ({ config }) => {
    const nics = listOf(config.nics).map(objectOf);
    const unproven = nics
      .filter(({ nictype }) => textOf(nictype) !== 'vif')
      .map(({ model }) => textOf(model) || PROVEN_NIC)
      .find((model) => model !== PROVEN_NIC);
    return unproven === undefined
      ? undefined
      : refuse(
          'XEN_EMULATED_NIC',
          `a network card ${unproven} is emulated: only ${PROVEN_NIC} was tried; "type=vif" in its line of the configuration leaves the PV one`,
        );
  },
  ({ config }) =>
    isSet(hvmOf(config).gfx_passthru)
      ? refuse(
          'XEN_PASSTHROUGH',
          'a graphics card is passed through: it writes to memory unseen and cannot be saved',
        )
      : undefined,
  ({ config }) => {
    const brought = Object.entries(UNPROVEN_OPTIONS).flatMap(([path, what]) =>
      isGiven(optionAt(objectOf(config.b_info), path)) ? what : [],
    );
    const displays = ['spice', 'sdl'].filter((name) => isSet(objectOf(hvmOf(config)[name]).enable));
    const usb = [...listOf(config.usbctrls), ...listOf(config.usbdevs)].length > 0 ? ['USB'] : [];
    const all = [...new Set([...brought, ...displays.map((name) => name.toUpperCase()), ...usb])];
    return all.length === 0
      ? undefined
      : refuse('XEN_DEVICE_MODEL', `the guest has ${all.join(', ')}: not tried`);
  },
  ({ deviceModel: { hasMovedMemory } }) =>
    hasMovedMemory
      ? refuse(
          'XEN_DEVICE_MODEL',
          'the device model has memory of its own in the guest (physmap in xenstore)',
        )
      : undefined,
  ({ deviceModel: { problem } }) => (problem === '' ? undefined : refuse('XEN_DEVICE_MODEL', problem)),
];

/**
 * While somebody looks at the screen, QEMU asks the hypervisor which pages of the graphics card's memory were
 * written to. From 4.17 on the answer comes from the types of these pages, and the domain's bitmap stays as
 * it is; 4.16 switches log-dirty mode on for it when it is off, so that the probe of `LogDirtyTracker` would
 * take it for tracking of the whole domain (hap_track_dirty_vram in xen/arch/x86/mm/hap/hap.c).
 */
function keepsScreenApart({ major, minor }: XenVersion): boolean {
  return major > 4 || (major === 4 && minor >= 17);
}

function hvmOf(config: JsonObject): JsonObject {
  return objectOf(objectOf(config.b_info)['type.hvm']);
}

/** `type.hvm` is one key: libxl's JSON has the dot in its name. */
function optionAt(built: JsonObject, path: string): Json | undefined {
  const inHvm = /^type\.hvm\.(.+)$/.exec(path)?.[1];
  return inHvm === undefined ? built[path] : objectOf(built['type.hvm'])[inHvm];
}

function isGiven(value: Json | undefined): boolean {
  if (Array.isArray(value)) return value.length > 0;
  return isSet(value) || (typeof value === 'string' && !['', 'False', 'disabled', 'none'].includes(value));
}
