/**
 * The command line with which a checkpoint's VM starts again: the recorded one, with as few changes as
 * possible.
 *
 * The changes are made in this order:
 *
 * 0. Options whose disk or medium was another one at the checkpoint name that (see `present-disks.ts`). A fork that was
 *    checkpointed gets memory of its own: its template went with the forks.
 * 1. `dropArgs`, then `setArgs` of the operator (see `applyOperatorEdits`).
 * 2. -incoming, -loadvm and -daemonize leave (the stream brings the state, the process is detached by Cairn);
 *    -S leaves or comes.
 * 3. The path of the QMP socket becomes the one asked for; a machine without a QMP socket gets one.
 * 4. The machine type becomes the resolved one (pc -> pc-i440fx-7.2): the stream is bound to it, and an alias
 *    means something else in another version of QEMU. An operator who set -machine is left alone.
 * 5. `-incoming defer` comes last.
 *
 * File descriptors that were handed to the recorded process do not exist any more: such arguments are
 * refused.
 */

import { resolve } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import {
  escapeCommas,
  lacksValue,
  option,
  parseCommandLine,
  splitValue,
  unescapeCommas,
  valueOf,
  withValueOf,
  type QemuOption,
} from '../../disks/qcow2/command-line.js';
import { isOn } from '../../disks/qcow2/option-fields.js';
import { withPresentDisks } from '../inspect/present-disks.js';
import { withOwnMemory } from '../memory/template-object.js';
import type { RecordedMachine } from './machine.js';
import type { KvmRestoreRequest } from './options.js';
import { intoFolder, nameIn, renamed, renaming } from './renamed.js';

/** What a start goes by, among all that a restore may be asked for. */
export interface StartEdits extends Pick<
  KvmRestoreRequest,
  'setArgs' | 'dropArgs' | 'socketPath' | 'paused' | 'newName' | 'program'
> {
  /** With `newName`: what a process has for itself goes into this folder, instead of beside that of the original. */
  readonly ownFolder?: string;
}

export interface RestoredCommandLine {
  readonly options: readonly QemuOption[];
  /** Absolute path of the QMP socket that the new process opens. */
  readonly qmpPath: string;
}

/**
 * @throws USAGE for an edit that makes no sense, VM_UNSUPPORTED for handed-over descriptors, an option without
 *   its value, or without any QMP socket
 */
export function restoredCommandLine(machine: RecordedMachine, request: StartEdits): RestoredCommandLine {
  const { newName, ownFolder } = request;
  const written = withOwnMemory(parseCommandLine(machine.argv));
  const present = withPresentDisks(written, machine.cwd, machine.presentDisks ?? []);
  const rename = ownFolder === undefined ? renaming(nameIn(present), newName ?? '') : intoFolder(ownFolder);
  const recorded = newName === undefined ? present : renamed(present, newName, rename);
  const qmpPath = newName === undefined || machine.qmpPath === '' ? machine.qmpPath : rename(machine.qmpPath);
  const edited = applyOperatorEdits(recorded, request);
  const left = new Set(['incoming', 'loadvm', 'daemonize', 'S']);
  const kept = edited.options.filter(({ name }) => !left.has(name));
  refuseDescriptors(kept);
  refuseDangling(kept);
  const monitored = withQmpSocket(kept, { ...machine, qmpPath }, request.socketPath);
  const typed = edited.machineIsSet
    ? monitored.options
    : withMachineType(monitored.options, machine.machineType);
  return {
    options: [...typed, ...(request.paused ? [option('S')] : []), option('incoming', 'defer')],
    qmpPath: resolve(machine.cwd, monitored.path),
  };
}

const EDIT = /^--?(?<name>[A-Za-z0-9][A-Za-z0-9-]*)(?:#(?<nth>[1-9][0-9]*))?(?:=(?<value>.*))?$/s;

/**
 * `-name=web2` replaces the value of the first -name and leaves later ones; without any -name it is added at
 * the end. `-drive#2=...` replaces the second -drive, or adds it when there is just one. `-snapshot` adds the
 * flag unless it is there. Dropping: `-vnc` drops every -vnc, `-drive#2` the second -drive, `-device=e1000`
 * those -device with just that value. Edits are applied in the order given, so `#2` counts what is left by
 * then.
 */
function applyOperatorEdits(
  recorded: readonly QemuOption[],
  request: Pick<KvmRestoreRequest, 'setArgs' | 'dropArgs'>,
): { readonly options: readonly QemuOption[]; readonly machineIsSet: boolean } {
  let options = [...recorded];
  let machineIsSet = false;
  for (const text of request.dropArgs ?? []) {
    const { name, nth, value } = parseEdit(text);
    const found = positionsOf(options, name);
    const chosen = nth === undefined ? found : found.slice(nth - 1, nth);
    const matching = new Set(chosen.filter((at) => value === undefined || options[at]!.value === value));
    if (matching.size === 0) {
      throw new CheckpointError('USAGE', `the recorded command line has no ${text} to drop`, {
        hint: 'cairn show prints the recorded command line',
      });
    }
    options = options.filter((_, at) => !matching.has(at));
  }
  for (const text of request.setArgs ?? []) {
    const { name, spelled, nth, value } = parseEdit(text);
    machineIsSet ||= name === 'machine';
    const found = positionsOf(options, name);
    const at = found[(nth ?? 1) - 1];
    if (at !== undefined) {
      options[at] = { ...options[at]!, value };
    } else if ((nth ?? 1) === found.length + 1) {
      options.push(option(spelled, value));
    } else {
      throw new CheckpointError('USAGE', `${text}: the command line has only ${found.length} of -${spelled}`);
    }
  }
  return { options, machineIsSet };
}

function parseEdit(text: string): {
  readonly name: string;
  readonly spelled: string;
  readonly nth: number | undefined;
  readonly value: string | undefined;
} {
  const groups = EDIT.exec(text)?.groups;
  const spelled = groups?.name;
  if (groups === undefined || spelled === undefined) {
    throw new CheckpointError('USAGE', `"${text}" is not an argument of QEMU`, {
      hint: 'write -option=value, -option#2=value for the second one, or -flag',
    });
  }
  const nth = groups.nth;
  return {
    name: option(spelled).name,
    spelled,
    nth: nth === undefined ? undefined : Number(nth),
    value: groups.value,
  };
}

function positionsOf(options: readonly QemuOption[], name: string): number[] {
  return options.flatMap((each, at) => (each.name === name ? [at] : []));
}

const DESCRIPTOR_KEY =
  /(?:^|,)(?:fd|fds|vhostfd|vhostfds|sockfd)=|"(?:fd|fds|vhostfd|vhostfds)"\s*:|\/dev\/fdset\/|^fd:/;

function refuseDescriptors(options: readonly QemuOption[]): void {
  const found = options.filter(({ name, value }) => name === 'add-fd' || DESCRIPTOR_KEY.test(value ?? ''));
  if (found.length === 0) return;
  const list = found.map(({ spelling, value }) => `${spelling} ${value ?? ''}`.trim()).join('; ');
  throw new CheckpointError(
    'VM_UNSUPPORTED',
    `the recorded VM was given open file descriptors by its manager, which nobody can open again: ${list}`,
    {
      hint:
        'restore it through its manager (libvirt:NAME), or replace these arguments with --set-arg and --drop-arg, ' +
        'for example a tap device by name in place of fd=',
      detail: { arguments: found.map(({ spelling, value }) => `${spelling} ${value ?? ''}`) },
    },
  );
}

/** An option without its value would take the next argument for it, -incoming in the end: a fresh guest would start. */
function refuseDangling(options: readonly QemuOption[]): void {
  const found = options.find(lacksValue);
  if (found === undefined) return;
  throw new CheckpointError(
    'VM_UNSUPPORTED',
    `the option ${found.spelling} of the command line has no value`,
    {
      hint: 'give it one with --set-arg, or leave it out with --drop-arg',
    },
  );
}

/** The first QMP monitor on a unix socket: -qmp unix:..., or -chardev socket with a -mon in control mode. */
function withQmpSocket(
  options: readonly QemuOption[],
  machine: RecordedMachine,
  wanted: string | undefined,
): { readonly options: readonly QemuOption[]; readonly path: string } {
  const candidates = options.flatMap((each, at) => {
    const path = qmpPathOf(each, options);
    return path === undefined ? [] : [{ at, path }];
  });
  const recorded = resolve(machine.cwd, machine.qmpPath);
  const chosen = candidates.find(({ path }) => resolve(machine.cwd, path) === recorded) ?? candidates[0];
  if (chosen !== undefined) {
    if (wanted === undefined) return { options, path: chosen.path };
    const path = resolve(wanted);
    const changed = [...options];
    changed[chosen.at] = withSocketPath(options[chosen.at]!, path);
    return { options: changed, path };
  }
  const path = wanted === undefined ? machine.qmpPath : resolve(wanted);
  if (path === '') {
    throw new CheckpointError('VM_UNSUPPORTED', 'the recorded command line opens no QMP socket', {
      hint: 'name one with --qmp PATH',
    });
  }
  return {
    options: [...options, option('qmp', `unix:${escapeCommas(path)},server=on,wait=off`)],
    path,
  };
}

/** The path as it is written; undefined for an option that opens no QMP socket. */
export function qmpPathOf(candidate: QemuOption, all: readonly QemuOption[]): string | undefined {
  const value = candidate.value ?? '';
  if (candidate.name === 'qmp' && value.startsWith('unix:')) {
    return isOn(value, 'server') ? unescapeCommas(splitValue(value)[0]!.slice('unix:'.length)) : undefined;
  }
  if (
    candidate.name !== 'chardev' ||
    valueOf(value, 'backend', 'backend') !== 'socket' ||
    !isOn(value, 'server')
  )
    return undefined;
  const id = valueOf(value, 'id');
  const isControl = all.some(
    (each) =>
      (each.name === 'mon' &&
        valueOf(each.value ?? '', 'chardev', 'chardev') === id &&
        valueOf(each.value ?? '', 'mode') === 'control') ||
      (each.name === 'qmp' && each.value === `chardev:${id ?? ''}`),
  );
  return isControl ? valueOf(value, 'path') : undefined;
}

function withSocketPath(chosen: QemuOption, path: string): QemuOption {
  const value = chosen.value ?? '';
  if (chosen.name === 'chardev') return { ...chosen, value: withValueOf(value, 'path', path) };
  return {
    ...chosen,
    value: [`unix:${escapeCommas(path)}`, ...splitValue(value).slice(1)].join(','),
  };
}

/** QEMU merges all -machine options and takes the type from the last that names one. */
function withMachineType(options: readonly QemuOption[], machineType: string): readonly QemuOption[] {
  const all = positionsOf(options, 'machine');
  const naming = all.filter((at) => machineTypeOf(options[at]!) !== undefined);
  const at = naming.at(-1) ?? all[0];
  if (at === undefined) return [option('machine', machineType), ...options];
  const value = options[at]!.value ?? '';
  const changed = [...options];
  const typed =
    naming.length > 0
      ? withValueOf(value, 'type', machineType, 'type')
      : [machineType, ...splitValue(value)].join(',');
  changed[at] = { ...options[at]!, value: typed };
  return changed;
}

function machineTypeOf(machineOption: QemuOption): string | undefined {
  return valueOf(machineOption.value ?? '', 'type', 'type');
}
