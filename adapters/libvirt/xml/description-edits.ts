/**
 * What `cairn restore` changes about a domain: name, UUID, MAC addresses, disks, and the operator's own
 * command.
 */

import { isAbsolute } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import { failureOf, runProgram } from '../../../src/host/run-program.js';
import type { CheckpointSource } from '../../../src/hypervisor/restore.js';
import type { LibvirtRestoreRequest } from '../restore/options.js';
import type { DiskSnapshot } from '../../../src/hypervisor/disks.js';
import type { DiskDrivers } from '../../disks/disk-drivers.js';
import { disksIn, nvramIn, withDisk } from './domain-disks.js';
import { checkedDomain, editedXml, recordedXml, renamed, withNewMacs } from './domain-xml.js';
import { MAX_XML_CHARS } from './xml-document.js';

export interface EditedDomain {
  readonly xml: string;
  /** Snapshots of the checkpoint, at the paths where the disks lie now. */
  readonly disks: readonly DiskSnapshot[];
}

/** A person may look at the XML in between; a command that hangs is still found out. */
const COMMAND_LIMIT_MS = 30 * 60_000;

/** @throws USAGE, VM_UNSUPPORTED when the checkpoint is not of a domain */
export async function editDomain(
  source: CheckpointSource,
  request: LibvirtRestoreRequest,
  drivers: Pick<DiskDrivers, 'movedTo'>,
): Promise<EditedDomain> {
  const { newName, newMacs, diskPaths = [], setArgs = [], keepDisks } = request;
  let xml = recordedXml(source.machine, source.checkpointId);
  let disks = keepDisks ? [] : source.disks;
  if (newName !== undefined) xml = renamed(xml, newName);
  xml = editedXml(xml, setArgs);
  if (newMacs === true) xml = withNewMacs(xml);
  for (const [target, path] of diskPaths.map(parseDiskPath)) {
    const before = disksIn(xml).find((disk) => disk.target === target)?.path;
    xml = withDisk(xml, target, path);
    disks = disks.flatMap((disk) => (disk.path === before ? (drivers.movedTo(disk, path) ?? []) : [disk]));
  }
  const edited = await throughCommand(xml, request);
  return { xml: edited, disks: withVariablesAt(disks, nvramIn(xml), nvramIn(edited), drivers) };
}

/** UEFI variables that the operator's command has put elsewhere. */
function withVariablesAt(
  disks: readonly DiskSnapshot[],
  before: string,
  now: string,
  drivers: Pick<DiskDrivers, 'movedTo'>,
): readonly DiskSnapshot[] {
  if (now === before || before === '' || now === '') return disks;
  return disks.flatMap((disk) => (disk.path === before ? (drivers.movedTo(disk, now) ?? []) : [disk]));
}

function parseDiskPath(argument: string): readonly [target: string, path: string] {
  const at = argument.indexOf('=');
  const path = argument.slice(at + 1);
  if (at > 0 && isAbsolute(path)) return [argument.slice(0, at), path];
  throw new CheckpointError('USAGE', `"${argument}" is no disk and absolute path`, {
    hint: 'for example --disk vda=/srv/web2.qcow2',
  });
}

async function throughCommand(
  xml: string,
  { xmlCommand, signal }: Pick<LibvirtRestoreRequest, 'xmlCommand' | 'signal'>,
): Promise<string> {
  if (xmlCommand === undefined) return xml;
  const result = await runProgram('/bin/sh', ['-c', xmlCommand], {
    limitMs: COMMAND_LIMIT_MS,
    signal,
    input: xml,
    // The command is the operator's, and so are its language and what it says: names in XML are UTF-8.
    env: process.env,
    stderr: 'inherit',
    maxOutputBytes: MAX_XML_CHARS,
    isShellCommand: true,
  });
  if (result.kind === 'interrupted') throw new CheckpointError('INTERRUPTED', 'the restore was interrupted');
  const edited = result.kind === 'done' ? result.stdout.trim() : '';
  if (edited.startsWith('<domain')) return checkedDomain(edited, 'what the command of --xml-edit wrote');
  throw new CheckpointError(
    'USAGE',
    result.kind === 'done'
      ? 'the command of --xml-edit wrote something that is no domain'
      : `the command of --xml-edit failed: ${failureOf('it', result)}`,
    { hint: 'it gets the domain XML on stdin and writes the whole changed XML to stdout' },
  );
}
