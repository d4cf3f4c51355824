/**
 * The command line of one child: what `renamed` has given it of its own, and besides
 *
 *     memory     the back end of each RAM block that a template stands for becomes that template
 *     cards      each network card a MAC address
 *     vmgenid    another generation id: the guest takes new random numbers when it sees it
 */

import { randomBytes, randomUUID } from 'node:crypto';

import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { option, splitValue, withValueOf, type QemuOption } from '../../disks/qcow2/command-line.js';
import { fieldOf, withField } from '../../disks/qcow2/option-fields.js';
import { templateObject } from '../memory/template-object.js';
import { refused } from './refused.js';

/** Main memory of a PC whose command line names none. */
const DEFAULT_RAM = 'pc.ram';

/** A RAM block of which there is a template. */
export interface TemplateBlock {
  readonly id: string;
  readonly sizeBytes: number;
}

/**
 * Blocks that can be replaced: those of back ends on the command line, and main memory without one.
 * @throws FORK_REFUSED when main memory is not among them
 */
export function templateBlocks(
  options: readonly QemuOption[],
  layout: MemoryLayout,
): readonly TemplateBlock[] {
  const ids = new Set(memoryObjects(options).map(({ id }) => id));
  const found = layout.regions.filter(({ id }) => ids.has(id) || id === DEFAULT_RAM);
  const largest = layout.regions.reduce((a, b) => (b.sizeBytes > a.sizeBytes ? b : a));
  if (!found.includes(largest)) {
    throw refused('MAIN_MEMORY', `no back end of the command line is its memory, ${largest.id}`, {
      hint: 'restore it instead',
      detail: { region: largest.id },
    });
  }
  return found.map(({ id, sizeBytes }) => ({ id, sizeBytes }));
}

export interface ChildOptions {
  readonly options: readonly QemuOption[];
  /** Empty where the VM has none. */
  readonly uuid: string;
  readonly macs: readonly string[];
  /** Empty without such a device. */
  readonly generationId: string;
}

/**
 * @param options as `renamed` has made them
 * @param descriptorOf number of the descriptor, in the new process, of a block's template
 * @param takenMacs of the other children; those of this one are added
 */
export function childOptions(
  options: readonly QemuOption[],
  blocks: readonly TemplateBlock[],
  descriptorOf: (id: string) => number,
  takenMacs: Set<string>,
): ChildOptions {
  const macs: string[] = [];
  const generationId = randomUUID();
  const nextMac = (): string => {
    let mac = randomMac();
    while (takenMacs.has(mac)) mac = randomMac();
    takenMacs.add(mac);
    macs.push(mac);
    return mac;
  };
  const own = options.map((each) => withIdentity(each, nextMac, generationId));
  const uuid = own.findLast(({ name }) => name === 'uuid')?.value ?? '';
  const hasGeneration = own.some(isGenerationDevice);
  return {
    options: withTemplates(own, blocks, descriptorOf),
    ...{ uuid, macs, generationId: hasGeneration ? generationId : '' },
  };
}

/** Cards that QEMU can emulate and that need no back end to be one. */
const CARD =
  /^(?:virtio-net|e1000|igb\b|rtl8139|ne2k|pcnet|vmxnet3|i825|usb-net|tulip|sungem|sunhme|dp8393x)/;

function isCard({ name, value = '' }: QemuOption): boolean {
  if (name !== 'device') return false;
  const has = (key: string): boolean => fieldOf(value, key) !== undefined;
  return has('netdev') || has('mac') || CARD.test(fieldOf(value, 'driver', 'driver') ?? '');
}

function isGenerationDevice({ name, value = '' }: QemuOption): boolean {
  return name === 'device' && fieldOf(value, 'driver', 'driver') === 'vmgenid';
}

function withIdentity(each: QemuOption, nextMac: () => string, generationId: string): QemuOption {
  const { name, value = '' } = each;
  if (isCard(each)) return { ...each, value: withField(value, 'mac', nextMac()) };
  if (isGenerationDevice(each)) return { ...each, value: withField(value, 'guid', generationId) };
  // `-nic none` is no card.
  if (name === 'nic' && splitValue(value)[0] !== 'none')
    return { ...each, value: withValueOf(value, 'mac', nextMac()) };
  if (name === 'net' && splitValue(value)[0] === 'nic')
    return { ...each, value: withValueOf(value, 'macaddr', nextMac()) };
  return each;
}

/** Of those that QEMU gives out by itself: locally administered, unicast. */
function randomMac(): string {
  return `52:54:00:${randomBytes(3).toString('hex').match(/../g)!.join(':')}`;
}

interface MemoryObject {
  readonly at: number;
  readonly id: string;
}

function memoryObjects(options: readonly QemuOption[]): readonly MemoryObject[] {
  return options.flatMap(({ name, value = '' }, at) => {
    const isMemory =
      name === 'object' && fieldOf(value, 'qom-type', 'qom-type')?.startsWith('memory-backend-') === true;
    return isMemory ? [{ at, id: fieldOf(value, 'id') ?? '' }] : [];
  });
}

function withTemplates(
  options: readonly QemuOption[],
  blocks: readonly TemplateBlock[],
  descriptorOf: (id: string) => number,
): readonly QemuOption[] {
  const objectOf = ({ id, sizeBytes }: TemplateBlock): string =>
    templateObject(id, sizeBytes, descriptorOf(id));
  const named = memoryObjects(options);
  const replaced = options.map((each, at) => {
    const id = named.find((one) => one.at === at)?.id;
    const block = blocks.find((one) => one.id === id);
    return block === undefined ? each : { ...each, value: objectOf(block) };
  });
  const unnamed = blocks.find(({ id }) => !named.some((one) => one.id === id));
  if (unnamed === undefined) return replaced;
  return [option('object', objectOf(unnamed)), ...withMainMemory(replaced, unnamed.id)];
}

/** QEMU merges all -machine options. */
function withMainMemory(options: readonly QemuOption[], id: string): readonly QemuOption[] {
  const at = options.findIndex(({ name }) => name === 'machine');
  return options.map((each, i) =>
    i === at ? { ...each, value: withField(each.value ?? '', 'memory-backend', id) } : each,
  );
}
