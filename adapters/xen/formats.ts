/** Formats of xl, in which checkpoints are exported and imported. */

/** `xl`: what `xl save` writes and `xl restore` reads. Disks are not in it. */
export const EXPORT_FORMATS: readonly string[] = ['xl'];

export const IMPORT_FORMATS: readonly string[] = ['xl'];
