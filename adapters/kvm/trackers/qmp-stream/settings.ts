/**
 * QEMU's migration capabilities and parameters, which belong to the operator: what of them a stream to Cairn
 * must change, and the way back. Source: qapi/migration.json of QEMU 7.2 to 10.0.
 */

import type { JsonObject } from '../../../../src/types.js';
import type { Monitor } from '../../../qemu/monitor.js';
import { asArray, asNumber, asObject, asText } from '../../../qemu/qmp-json.js';

/** What both `migrate-set-capabilities` and `migrate-set-parameters` take. */
export interface MigrationSettings {
  readonly capabilities: readonly JsonObject[];
  readonly parameters: JsonObject;
}

export interface SettingsPlan {
  readonly apply: MigrationSettings;
  /** Exactly what `apply` changes, as it was found. */
  readonly putBack: MigrationSettings;
}

/** All others are switched off: each of them changes the stream, the pace or the end of a migration. */
const WANTED_CAPABILITIES = new Set(['events', 'pause-before-switchover']);
/** More than any machine moves, in bytes a second; 0 does not mean "no limit" in every version. */
const NO_LIMIT_BYTES_PER_SECOND = 2 ** 40;
/**
 * QEMU stops the VM by itself once what is left would take that long, in milliseconds. The smallest there is:
 * with 0 it would end without asking for the pages dirtied meanwhile.
 */
const DOWNTIME_LIMIT_MS = 1;

/** Asks, and changes nothing. @throws QMP_COMMAND, VM_GONE */
export async function planSettings(monitor: Monitor): Promise<SettingsPlan> {
  const [capabilities, reply] = await Promise.all([
    monitor.execute('query-migrate-capabilities'),
    monitor.execute('query-migrate-parameters'),
  ]);
  const changed = asArray(capabilities).filter(
    ({ capability, state }) => state !== WANTED_CAPABILITIES.has(asText(capability)),
  );
  const found = asObject(reply);
  const wanted: Record<string, JsonObject[string]> = {
    'max-bandwidth': NO_LIMIT_BYTES_PER_SECOND,
    'downtime-limit': DOWNTIME_LIMIT_MS,
  };
  if (asText(found['tls-creds']) !== '') wanted['tls-creds'] = '';
  if (asText(found.mode) !== '') wanted.mode = 'normal';
  if (asNumber(found['avail-switchover-bandwidth']) !== 0) wanted['avail-switchover-bandwidth'] = 0;
  if (asText(found['zero-page-detection']) === 'none') wanted['zero-page-detection'] = 'legacy';
  const names = Object.keys(wanted).filter(
    (name) => found[name] !== undefined && found[name] !== wanted[name],
  );
  return {
    apply: {
      capabilities: changed.map(({ capability, state }) => ({
        capability: capability!,
        state: state !== true,
      })),
      parameters: Object.fromEntries(names.map((name) => [name, wanted[name]!])),
    },
    putBack: {
      capabilities: changed.map(({ capability, state }) => ({
        capability: capability!,
        state: state === true,
      })),
      parameters: Object.fromEntries(names.map((name) => [name, found[name]!])),
    },
  };
}

/** @throws QMP_COMMAND while a migration is under way */
export async function setSettings(monitor: Monitor, settings: MigrationSettings): Promise<void> {
  if (settings.capabilities.length > 0)
    await monitor.execute('migrate-set-capabilities', { capabilities: settings.capabilities });
  if (Object.keys(settings.parameters).length > 0)
    await monitor.execute('migrate-set-parameters', settings.parameters);
}
