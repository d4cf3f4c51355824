/**
 * A writer of a chain that does what it is told, line by line, and answers each with a line.
 *
 *     node dist/test/truth/nfs-writer.js REPOSITORY CHAIN BEAT_MS
 *
 *     take       takes the lock: "held", or the code of the refusal
 *     held?      "held", or the code
 *     release    "released"
 */

import { createInterface } from 'node:readline';

import { openBackend, Repository } from '../../src/index.js';
import type { VmIdentity } from '../../src/hypervisor/vm.js';
import { isCheckpointError } from '../../src/errors.js';
import type { ChainWriter } from '../../src/repository/chain-writer.js';

const [repo = '', name = '', beatMs = ''] = process.argv.slice(2);
const identity: VmIdentity = { hypervisor: 'kvm', name, uuid: '', machineType: '', instance: '' };
const repository = await Repository.open(openBackend(repo));
let chain: ChainWriter | undefined;

async function answer(order: string): Promise<string> {
  try {
    switch (order) {
      case 'take':
        chain = await repository.openChainWriter(name, identity, { beatMs: Number(beatMs) });
        return 'held';
      case 'held?':
        await chain!.mustBeHeld();
        return 'held';
      default:
        await chain?.close();
        chain = undefined;
        return 'released';
    }
  } catch (error) {
    return isCheckpointError(error) ? error.code : String(error);
  }
}

process.stdout.write('ready\n');
for await (const line of createInterface(process.stdin)) process.stdout.write(`${await answer(line)}\n`);
