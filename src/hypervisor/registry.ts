/** The adapters that are known, and which of them serves an address, a format, a checkpoint. */

import { CheckpointError } from '../errors.js';
import type { Hypervisor } from './hypervisor.js';

export type ImportingHypervisor = Hypervisor & Required<Pick<Hypervisor, 'importFrom'>>;
export type ReceivingHypervisor = Hypervisor & Required<Pick<Hypervisor, 'receive'>>;

export class HypervisorRegistry {
  readonly #all: readonly Hypervisor[];

  constructor(hypervisors: readonly Hypervisor[]) {
    this.#all = hypervisors;
  }

  get all(): readonly Hypervisor[] {
    return this.#all;
  }

  /** @throws VM_ADDRESS for a scheme that nobody serves */
  forAddress(address: string): Hypervisor {
    const scheme = address.slice(0, Math.max(0, address.indexOf(':')));
    const found = this.#all.find((hypervisor) => hypervisor.schemes.includes(scheme));
    if (found !== undefined) return found;
    const known = this.#all.flatMap((hypervisor) => hypervisor.schemes).map((known) => `${known}:`);
    throw new CheckpointError('VM_ADDRESS', `"${address}" is not the address of a VM`, {
      hint: `an address starts with ${known.join(' or ')}, for example qmp:/run/web1.qmp`,
    });
  }

  /** @throws USAGE for a format that nobody reads */
  importing(format: string): ImportingHypervisor {
    const found = this.#all.find(
      (hypervisor): hypervisor is ImportingHypervisor =>
        hypervisor.importFrom !== undefined &&
        (hypervisor.importFormats ?? []).some(({ name }) => name === format),
    );
    if (found !== undefined) return found;
    throw new CheckpointError('USAGE', `no import format "${format}"`, { hint: this.#knownFormats() });
  }

  /**
   * The format of a file by its beginning.
   * @param head `RECOGNITION_BYTES` of it, or all of a shorter one
   * @param claimed the format that the caller takes it for; a file that nobody knows is believed to be of it
   * @throws STREAM_MALFORMED for a file that is of another format than it is taken for, one that cannot be
   *   imported, and one that nobody knows
   */
  formatOf(head: Uint8Array, claimed?: string): string {
    for (const { importFormats = [] } of this.#all) {
      for (const { name, recognise } of importFormats) {
        const what = recognise(head);
        if (what === undefined) continue;
        if (claimed === undefined || claimed === name) return name;
        throw new CheckpointError('STREAM_MALFORMED', `it is ${what}, not ${this.#whatIs(claimed)}`, {
          hint: `use --format ${name}`,
        });
      }
    }
    const foreign = this.#all
      .flatMap(({ foreignFiles = [] }) => foreignFiles)
      .find(({ isBegunBy }) => isBegunBy(head));
    if (foreign !== undefined) {
      const { what, hint } = foreign;
      throw new CheckpointError('STREAM_MALFORMED', `it is ${what}, which cannot be imported`, { hint });
    }
    if (claimed !== undefined) return claimed;
    throw new CheckpointError('STREAM_MALFORMED', 'nothing at its beginning says what it is', {
      hint: this.#knownFormats(),
    });
  }

  #whatIs(format: string): string {
    const formats = this.#all.flatMap(({ importFormats = [] }) => importFormats);
    return formats.find(({ name }) => name === format)?.what ?? format;
  }

  #knownFormats(): string {
    const formats = this.#all.flatMap(({ importFormats = [] }) => importFormats);
    return `known: ${formats.map(({ name, what }) => `${name} (${what})`).join(', ')}`;
  }

  /** The hypervisor that takes machines from a stream. @throws VM_UNSUPPORTED when there is none */
  receiving(): ReceivingHypervisor {
    const found = this.#all.find(
      (hypervisor): hypervisor is ReceivingHypervisor => hypervisor.receive !== undefined,
    );
    if (found !== undefined) return found;
    throw new CheckpointError('VM_UNSUPPORTED', 'no adapter takes machines from a stream');
  }

  /** @throws VM_UNSUPPORTED when a checkpoint comes from a hypervisor that is not registered */
  byName(name: string): Hypervisor {
    const found = this.#all.find((hypervisor) => hypervisor.name === name);
    if (found !== undefined) return found;
    throw new CheckpointError('VM_UNSUPPORTED', `no adapter for the hypervisor "${name}"`);
  }
}
