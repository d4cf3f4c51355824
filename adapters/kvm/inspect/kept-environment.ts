/**
 * Which variables of a QEMU's environment a checkpoint records and a restore sets. An environment may hold
 * secrets, and what whoever restores has in his own is no business of the VM: so what is not named here is
 * neither recorded nor handed on.
 */

/**
 * What decides which files QEMU and its libraries load and write, and in which language it complains.
 * LD_PRELOAD is none of it: it is code that nothing of the VM needs.
 */
const KEPT =
  /^(?:PATH|HOME|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR|XDG_RUNTIME_DIR|LD_LIBRARY_PATH|QEMU_[A-Z0-9_]+)$/;
const SECRET = /PASS|SECRET|TOKEN|KEY|CRED/;

/** For a QEMU of which no path was recorded. */
const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** @param environ text of /proc/PID/environ */
export function keptEnvironment(environ: string): Record<string, string> {
  return onlyKept(
    environ.split('\0').flatMap((entry) => {
      const equals = entry.indexOf('=');
      return equals > 0 ? [[entry.slice(0, equals), entry.slice(equals + 1)] as const] : [];
    }),
  );
}

/** The environment of a restored QEMU, of what was recorded. */
export function startEnvironment(recorded: Readonly<Record<string, string>>): Record<string, string> {
  return { PATH: DEFAULT_PATH, ...recorded };
}

export function onlyKept(entries: Iterable<readonly [string, unknown]>): Record<string, string> {
  const kept: Record<string, string> = {};
  for (const [name, value] of entries) {
    const isText = typeof value === 'string' && !value.includes('\0');
    if (isText && KEPT.test(name) && !SECRET.test(name)) kept[name] = value;
  }
  return kept;
}
