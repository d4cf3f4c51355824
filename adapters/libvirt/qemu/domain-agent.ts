/**
 * The guest's agent through libvirt, which holds its socket: virDomainQemuAgentCommand. Not
 * virDomainFSFreeze, which has no time limit: a guest that hangs in it would keep the connection, and with it
 * the thaw, for as long.
 */

import { describeError } from '../../../src/errors.js';
import type { Json, JsonObject } from '../../../src/types.js';
import { agentError, resultOf, type GuestAgent } from '../../kvm/run/guest-agent/guest-agent.js';
import { parseReply } from '../../qemu/qmp-json.js';
import type { LibvirtDomain } from '../domain.js';

export class DomainAgent implements GuestAgent {
  readonly #domain: Pick<LibvirtDomain, 'agentCommand' | 'name'>;

  constructor(domain: Pick<LibvirtDomain, 'agentCommand' | 'name'>) {
    this.#domain = domain;
  }

  async command(name: string, timeoutMs: number, args?: JsonObject): Promise<Json> {
    const reply = await this.#domain
      .agentCommand(JSON.stringify({ execute: name, arguments: args }), timeoutMs)
      .catch((cause: unknown) => {
        throw agentError(
          `${name} to the guest of ${this.#domain.name}: ${describeError(cause)}`,
          'the domain needs the channel org.qemu.guest_agent.0, and its guest qemu-guest-agent; `virsh domfsinfo` tries it',
          cause,
        );
      });
    let message: Json;
    try {
      message = parseReply(reply);
    } catch (cause) {
      throw agentError(
        `${name}: the agent of ${this.#domain.name} sent no JSON that can be read`,
        'does qemu-guest-agent run in the guest?',
        cause,
      );
    }
    return resultOf(name, message);
  }

  close(): void {
    // The domain's connection is not ours.
  }
}
