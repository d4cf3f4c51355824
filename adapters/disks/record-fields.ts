/** The fields that a driver wrote into a checkpoint, to be read with care: they come out of a repository. */

import { JsonFields } from '../../src/records/json-fields.js';
import type { DiskSnapshot } from '../../src/hypervisor/disks.js';

/**
 * Reads the fields of a record. For every field that is not as it must be it says REPO_DAMAGED, with the
 * manifest, the disk and the field.
 */
export function fieldsOf({ recordedIn, diskId, driver, data }: DiskSnapshot): JsonFields {
  return new JsonFields(recordedIn ?? 'the record of a disk snapshot', data, `disks[${diskId}, ${driver}].`);
}
