/** The `vm` object of a chain: whose checkpoints these are. Written once, with the chain's first writer. */

import { CheckpointError, isCheckpointError } from '../errors.js';
import type { VmIdentity } from '../hypervisor/vm.js';
import type { CallOptions, StorageBackend } from '../storage/backend.js';
import { chainKey, type ChainKeys } from '../format/chain-keys.js';
import { damaged } from '../records/damage.js';
import { checkVersion, FORMAT_NAME, FORMAT_VERSION } from '../format/format-version.js';
import { JsonFields } from '../records/json-fields.js';
import { loadSealed } from './read/load-sealed.js';
import { openSealedJson, sealJson } from '../format/sealed-json.js';

export interface VmRecord {
  /** Name of the chain, unescaped. */
  readonly name: string;
  readonly hypervisor: string;
  /** Empty when the VM has none. */
  readonly uuid: string;
  readonly machineType: string;
}

/** @throws STORAGE_NOT_FOUND, REPO_DAMAGED, REPO_VERSION */
export async function loadVmRecord(
  backend: StorageBackend,
  keys: ChainKeys,
  options: CallOptions,
): Promise<VmRecord> {
  const bytes = await loadSealed(backend, keys.vm, options);
  const json = new JsonFields(keys.vm, openSealedJson(keys.vm, bytes));
  json.oneOf('format', [FORMAT_NAME]);
  checkVersion(keys.vm, json.count('version'), json.texts('requires'));
  const record: VmRecord = {
    name: json.text('name'),
    hypervisor: json.text('hypervisor'),
    uuid: json.text('uuid'),
    machineType: json.text('machineType'),
  };
  if (record.name === '' || chainKey(record.name) !== keys.chain)
    throw damaged(keys.vm, 'record of another chain');
  return record;
}

/**
 * Creates the record, or checks that the existing one is of the same VM.
 * @throws CHAIN_WRONG_VM, REPO_DAMAGED, REPO_VERSION, and what the backend throws
 */
export async function claimVmRecord(
  backend: StorageBackend,
  keys: ChainKeys,
  name: string,
  identity: VmIdentity,
  options: CallOptions,
): Promise<void> {
  try {
    checkSameVm(keys.chain, await loadVmRecord(backend, keys, options), identity);
    return;
  } catch (error) {
    if (!isCheckpointError(error, 'STORAGE_NOT_FOUND')) throw error;
  }
  const { hypervisor, uuid, machineType } = identity;
  const head = { format: FORMAT_NAME, version: FORMAT_VERSION, requires: [] };
  await backend.save(keys.vm, sealJson({ ...head, name, hypervisor, uuid, machineType }), options);
}

function checkSameVm(chain: string, record: VmRecord, identity: VmIdentity): void {
  const differences: string[] = [];
  if (record.hypervisor !== identity.hypervisor) {
    differences.push(`hypervisor ${record.hypervisor}, not ${identity.hypervisor}`);
  }
  if (record.uuid !== identity.uuid) {
    differences.push(
      `UUID ${record.uuid === '' ? 'none' : record.uuid}, not ${identity.uuid === '' ? 'none' : identity.uuid}`,
    );
  } else if (record.uuid === '' && record.machineType !== identity.machineType) {
    differences.push(`machine type ${record.machineType}, not ${identity.machineType}`);
  }
  if (differences.length === 0) return;
  throw new CheckpointError(
    'CHAIN_WRONG_VM',
    `chain ${chain} belongs to another VM: ${differences.join('; ')}`,
    {
      hint: 'give this VM a chain of its own with --name',
      detail: { chain },
    },
  );
}
