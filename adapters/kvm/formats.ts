/** Formats of QEMU's own tools, in which checkpoints are exported and imported. */

/**
 * `qemu`: a complete migration stream. A QEMU with the same machine type, memory size and devices loads it
 * with `-incoming 'exec:cat FILE'`, from 8.2 on also with `-incoming file:FILE`; with -S it stays stopped.
 * Disks are not in it.
 */
export const EXPORT_FORMATS: readonly string[] = ['qemu'];

export const IMPORT_FORMATS: readonly string[] = ['qemu'];
