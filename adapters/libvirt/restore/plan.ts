/** What a restore through libvirt would have it run and open, before anything is done. */

import type { CheckpointSource, RestorePlan } from '../../../src/hypervisor/restore.js';
import { disksOfStoppedQemu } from '../../disks/disk-drivers.js';
import { planRestore as planOfKvm, rolledBack } from '../../kvm/restore/plan.js';
import { parseRestoreTarget } from '../address.js';
import { editDomain } from '../xml/description-edits.js';
import { parseXml, withAllBelow, type XmlElement } from '../xml/xml-document.js';
import type { LibvirtRestoreRequest } from './options.js';

/** Elements whose text is a file that is run or loaded. */
const FILES = new Set(['emulator', 'loader', 'nvram', 'kernel', 'initrd', 'dtb', 'bootloader', 'binary']);
/** Elements whose attributes name files, devices, or arguments of QEMU. */
const OTHERS = new Set(['arg', 'env', 'source', 'backend', 'script', 'rom']);
const TELLING = /^(?:file|dev|dir|path|name|value|mode|bridge|network|socket|host|port|tap|vhost|bus|slot)$/;

/** @throws USAGE, VM_UNSUPPORTED as the restore would */
export async function planDomainRestore(
  source: CheckpointSource,
  request: LibvirtRestoreRequest,
): Promise<RestorePlan> {
  const target = request.target === undefined ? '' : parseRestoreTarget(request.target);
  if (target === undefined) return planOfKvm(source, request);
  // The caller's own command edits what is shown here.
  const { xmlCommand, ...edits } = request;
  const { xml } = await editDomain(source, edits, disksOfStoppedQemu(source.machine));
  const elements = [...withAllBelow(parseXml(xml, 'the XML of the domain'))];
  const emulators = elements.filter(({ name }) => name === 'emulator').map((element) => [element.text()]);
  return {
    commands: emulators,
    details: [
      ...(xmlCommand === undefined ? [] : [`before the edits of ${xmlCommand}:`]),
      ...elements.flatMap(detailOf),
    ],
    disks: rolledBack(source, request),
  };
}

/** The name without its prefix: of QEMU's own arguments that is whatever the document calls it. */
function detailOf(element: XmlElement): readonly string[] {
  const name = element.name.slice(element.name.indexOf(':') + 1);
  if (FILES.has(name)) return [`${name} ${element.text()}`];
  if (!OTHERS.has(name)) return [];
  const telling = element.attributeNames.filter((attribute) => TELLING.test(attribute));
  const values = telling.map((attribute) => `${attribute}=${element.attribute(attribute) ?? ''}`);
  return values.length === 0 ? [] : [`${name} ${values.join(' ')}`];
}
