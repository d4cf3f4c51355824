/**
 * Loads of the guest, for the tests that do not ask for one of their own. A load at full speed takes an emulated
 * processor whole, and with it half of the machine that the tests run on; what is written several times a second is
 * enough wherever the writes themselves are not what a test is about.
 */

const REST_US = 300_000;

/** Some pages of `mib` MiB, several times a second. */
export function gentleLoad(mib: number): string {
  return `lab memory ${mib} ${REST_US}`;
}

/** Direct and buffered writes to the first disk, several times a second. */
export const GENTLE_DISK_LOAD = `lab disk ${REST_US}`;
