/**
 * How the command line of a fork names its memory. The template is a sealed file in memory that all forks of
 * one checkpoint have mapped copy on write, and that QEMU inherits open:
 *
 *     -object memory-backend-file,id=pc.ram,size=S,mem-path=/proc/self/fd/3,share=off,...
 *
 * The template ends with the last of its forks, so a checkpoint of a fork starts again with memory of its
 * own, by the same name.
 */

import type { QemuOption } from '../../disks/qcow2/command-line.js';
import { fieldOf } from '../../disks/qcow2/option-fields.js';

const INHERITED = /^\/proc\/self\/fd\/\d+$/;

/**
 * @param id of the back end, which is the name of the RAM block as well
 * @param descriptor its number in the new process
 */
export function templateObject(id: string, sizeBytes: number, descriptor: number): string {
  return [
    ...['memory-backend-file', `id=${id}`, `size=${sizeBytes}`, `mem-path=/proc/self/fd/${descriptor}`],
    // Allocating beforehand would copy all of the template.
    ...['share=off', 'prealloc=off', 'x-use-canonical-path-for-ramblock-id=off'],
  ].join(',');
}

export function ownMemoryObject(id: string, sizeBytes: string): string {
  return `memory-backend-ram,id=${id},size=${sizeBytes},x-use-canonical-path-for-ramblock-id=off`;
}

/** The command line of a fork with memory of its own; any other as it is. */
export function withOwnMemory(options: readonly QemuOption[]): QemuOption[] {
  return options.map((each) => {
    const { name, value = '' } = each;
    if (name !== 'object' || fieldOf(value, 'qom-type', 'qom-type') !== 'memory-backend-file') return each;
    if (!INHERITED.test(fieldOf(value, 'mem-path') ?? '')) return each;
    return { ...each, value: ownMemoryObject(fieldOf(value, 'id') ?? '', fieldOf(value, 'size') ?? '') };
  });
}
