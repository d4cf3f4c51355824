/**
 * `libvirt:[URI#]DOMAIN`: the connection, then the domain by name, UUID or id of the running instance.
 *
 *     libvirt:web1                        the system's daemon
 *     libvirt:qemu:///session#web1        the user's
 *     libvirt:3f6f0b6e-...                by UUID
 *     libvirt:7                           by id, unless a domain is called "7"
 */

import { CheckpointError } from '../../src/errors.js';

/** What a manifest records as the hypervisor of a domain. */
export const LIBVIRT_NAME = 'libvirt';
export const LIBVIRT_SCHEME = 'libvirt';
export const SYSTEM_URI = 'qemu:///system';

export interface DomainAddress {
  readonly uri: string;
  /** Name, UUID or id. */
  readonly domain: string;
}

/** @throws VM_ADDRESS, VM_UNSUPPORTED for a daemon of another host or of another hypervisor */
export function parseDomainAddress(address: string): DomainAddress {
  const groups = /^libvirt:(?:(?<uri>[^#]*)#)?(?<domain>[^#]+)$/.exec(address)?.groups;
  if (groups?.domain === undefined) {
    throw new CheckpointError('VM_ADDRESS', `"${address}" is not the address of a libvirt domain`, {
      hint: 'for example libvirt:web1 or libvirt:qemu:///session#web1',
    });
  }
  return { uri: localUri(groups.uri || SYSTEM_URI), domain: groups.domain };
}

/**
 * The URI in `restore --to libvirt[:URI]`; undefined when the target is something else.
 * @throws VM_UNSUPPORTED
 */
export function parseRestoreTarget(target: string): string | undefined {
  if (target === LIBVIRT_SCHEME) return SYSTEM_URI;
  if (!target.startsWith(`${LIBVIRT_SCHEME}:`)) return undefined;
  return localUri(target.slice(LIBVIRT_SCHEME.length + 1).replace(/#$/, '') || SYSTEM_URI);
}

export function formatDomainAddress({ uri, domain }: DomainAddress): string {
  return uri === SYSTEM_URI ? `libvirt:${domain}` : `libvirt:${uri}#${domain}`;
}

/** A QEMU of this host: what is tracked and read is a process here. @throws VM_UNSUPPORTED */
export function localUri(uri: string): string {
  if (/^qemu(\+unix)?:\/\/\/(system|session|embed)\b/.test(uri)) return uri;
  throw new CheckpointError('VM_UNSUPPORTED', `"${uri}" is not libvirt's QEMU driver on this host`, {
    hint: 'qemu:///system or qemu:///session; for a VM of another host run cairn there',
  });
}
