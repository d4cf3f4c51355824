/**
 * A QEMU command line as a list of options, so that single ones can be found, changed and left out. Only the
 * options are taken apart; what is not touched comes out as it went in.
 *
 * Source: qemu-options.hx of QEMU 7.2 and 10.0 (which options take a value).
 */

export interface QemuOption {
  /** Name of the option without dashes, `machine` for -M; empty for a disk image that stands alone. */
  readonly name: string;
  /** The option as written, with its dashes; empty for a disk image that stands alone. */
  readonly spelling: string;
  /** Undefined for an option that takes none. */
  readonly value: string | undefined;
}

/** Options of x86 system emulation that take no value. */
const FLAGS = new Set([
  ...[
    'h',
    'help',
    'version',
    'S',
    's',
    'snapshot',
    'usb',
    'nographic',
    'portrait',
    'full-screen',
    'win2k-hack',
  ],
  ...[
    'no-fd-bootchk',
    'no-acpi',
    'no-hpet',
    'no-reboot',
    'no-shutdown',
    'nodefaults',
    'no-user-config',
    'nouserconfig',
  ],
  ...['preconfig', 'enable-kvm', 'daemonize', 'only-migratable', 'mem-prealloc', 'audio-help', 'singlestep'],
  ...[
    'one-insn-per-tb',
    'xen-attach',
    'xen-domid-restrict',
    'enable-fips',
    'enable-sync-profile',
    'show-cursor',
  ],
  ...[
    'async-teardown',
    'alt-grab',
    'ctrl-grab',
    'no-quit',
    'sdl',
    'curses',
    'no-kvm',
    'perfmap',
    'jitdump',
    'semihosting',
  ],
]);

/**
 * Options that take one. An option that is in neither table is one of a QEMU that came later, and takes a value unless
 * the next argument begins with a dash, or there is none. QEMU's own list (`-help`) is not asked: as root, Cairn would
 * run the program of whoever runs the VM.
 */
const VALUED = new Set([
  ...['accel', 'acpitable', 'action', 'add-fd', 'append', 'audio', 'audiodev', 'bios', 'blockdev', 'boot'],
  ...['cdrom', 'chardev', 'chroot', 'compat', 'cpu', 'd', 'D', 'debugcon', 'device', 'dfilter', 'display'],
  ...['drive', 'dtb', 'dump-vmstate', 'echr', 'fda', 'fdb', 'fsdev', 'fw_cfg', 'gdb', 'global', 'hda', 'hdb'],
  ...['hdc', 'hdd', 'icount', 'incoming', 'initrd', 'iscsi', 'k', 'kernel', 'L', 'loadvm', 'm', 'machine'],
  ...['mem-path', 'mon', 'monitor', 'msg', 'mtdblock', 'name', 'net', 'netdev', 'nic', 'numa', 'object'],
  ...['option-rom', 'overcommit', 'parallel', 'pflash', 'pidfile', 'plugin', 'qmp', 'readconfig', 'rotate'],
  ...['rtc', 'run-with', 'runas', 'sandbox', 'sd', 'seed', 'serial', 'set', 'shim', 'smbios', 'smp', 'spice'],
  ...['tb-size', 'tpmdev', 'trace', 'usbdevice', 'uuid', 'vga', 'virtfs', 'vnc', 'watchdog'],
  ...['watchdog-action', 'writeconfig', 'xen-domid'],
]);

/** A map: an object has names of its own, such as `constructor`, and a command line may hold any. */
const ALIASES: ReadonlyMap<string, string> = new Map([
  ['M', 'machine'],
  ['qmp-pretty', 'qmp'],
]);

/** @param argv without the program's own name */
export function parseCommandLine(argv: readonly string[]): QemuOption[] {
  const options: QemuOption[] = [];
  for (let i = 0; i < argv.length; i++) {
    const spelling = argv[i]!;
    if (!spelling.startsWith('-') || spelling === '-') {
      options.push({ name: '', spelling: '', value: spelling });
      continue;
    }
    const written = spelling.replace(/^--?/, '');
    const name = ALIASES.get(written) ?? written;
    const takesNone = FLAGS.has(name) || (!VALUED.has(name) && isOption(argv[i + 1] ?? '-?'));
    options.push(takesNone ? { name, spelling, value: undefined } : { name, spelling, value: argv[++i] });
  }
  return options;
}

function isOption(argument: string): boolean {
  return argument.startsWith('-') && argument !== '-';
}

/** Whether an option that takes a value has none. */
export function lacksValue({ name, value }: QemuOption): boolean {
  return value === undefined && VALUED.has(name);
}

export function formatCommandLine(options: readonly QemuOption[]): string[] {
  return options.flatMap(({ spelling, value }) => [
    ...(spelling === '' ? [] : [spelling]),
    ...(value === undefined ? [] : [value]),
  ]);
}

export function option(name: string, value?: string): QemuOption {
  return { name: ALIASES.get(name) ?? name, spelling: `-${name}`, value };
}

/**
 * The `key=value` parts of an option's value. A comma inside a value is written twice. Parts keep their
 * escapes.
 */
export function splitValue(value: string): string[] {
  return value.match(/(?:[^,]|,,)+/g) ?? [];
}

/**
 * The value of `key`, unescaped; the last one wins, as in QEMU. `implied` is the key of a first part that has
 * none.
 */
export function valueOf(value: string, key: string, implied?: string): string | undefined {
  const found = splitValue(value).filter((part, i) => keyOf(part, i, implied) === key);
  const last = found.at(-1);
  return last === undefined ? undefined : unescapeCommas(last.slice(last.indexOf('=') + 1));
}

/** `value` with `key` set: in place where it stands, at the end when it does not. */
export function withValueOf(value: string, key: string, to: string, implied?: string): string {
  const parts = splitValue(value);
  const set = (part: string): string =>
    part.includes('=') ? `${key}=${escapeCommas(to)}` : escapeCommas(to);
  const isThere = parts.some((part, i) => keyOf(part, i, implied) === key);
  if (!isThere) return [...parts, `${key}=${escapeCommas(to)}`].join(',');
  return parts.map((part, i) => (keyOf(part, i, implied) === key ? set(part) : part)).join(',');
}

/** `value` without `key`. */
export function withoutValueOf(value: string, key: string): string {
  return splitValue(value)
    .filter((part) => !part.startsWith(`${key}=`))
    .join(',');
}

function keyOf(part: string, index: number, implied: string | undefined): string | undefined {
  const equals = part.indexOf('=');
  if (equals >= 0) return part.slice(0, equals);
  return index === 0 ? implied : undefined;
}

/** A comma inside a value is written twice. */
export function escapeCommas(text: string): string {
  return text.replaceAll(',', ',,');
}

export function unescapeCommas(text: string): string {
  return text.replaceAll(',,', ',');
}
