/** The adapters that are known, and which of them serves an address, a format, a checkpoint. */

import { CheckpointError } from '../errors.js';
import type { Hypervisor } from './hypervisor.js';

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
  importing(format: string): Hypervisor {
    const found = this.#all.find(({ importFormats = [] }) => importFormats.includes(format));
    if (found?.importFrom !== undefined) return found;
    const known = this.#all.flatMap(({ importFormats = [] }) => importFormats);
    throw new CheckpointError('USAGE', `no import format "${format}"`, {
      hint: `known: ${known.join(', ')}`,
    });
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
