/** What `cairn restore` changes about a domain: name, UUID, MAC addresses, disks, and the operator's own command. */

import { spawn } from 'node:child_process';
import { text } from 'node:stream/consumers';
import { isAbsolute } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import type { CheckpointSource, DescriptionEdits, RestoreRequest } from '../../../src/hypervisor/restore.js';
import type { DiskSnapshot } from '../../../src/hypervisor/disks.js';
import type { DiskDrivers } from '../../disks/disk-drivers.js';
import { disksIn, withDisk } from './domain-disks.js';
import { editedXml, recordedXml, renamed, withNewMacs } from './domain-xml.js';

export interface EditedDomain {
  readonly xml: string;
  /** Snapshots of the checkpoint, at the paths where the disks lie now. */
  readonly disks: readonly DiskSnapshot[];
}

/** @throws USAGE, VM_UNSUPPORTED when the checkpoint is not of a domain */
export async function editDomain(
  source: CheckpointSource,
  request: RestoreRequest,
  drivers: Pick<DiskDrivers, 'movedTo'>,
): Promise<EditedDomain> {
  const { edits, setArgs, keepDisks } = request;
  let xml = recordedXml(source.machine);
  let disks = keepDisks ? [] : source.disks;
  if (edits?.newName !== undefined) xml = renamed(xml, edits.newName);
  xml = editedXml(xml, setArgs);
  if (edits?.newMacs === true) xml = withNewMacs(xml);
  for (const [target, path] of (edits?.diskPaths ?? []).map(parseDiskPath)) {
    const before = disksIn(xml).find((disk) => disk.target === target)?.path;
    xml = withDisk(xml, target, path);
    disks = disks.flatMap((disk) => (disk.path === before ? (drivers.movedTo(disk, path) ?? []) : [disk]));
  }
  return { xml: await throughCommand(xml, edits), disks };
}

function parseDiskPath(argument: string): readonly [target: string, path: string] {
  const at = argument.indexOf('=');
  const path = argument.slice(at + 1);
  if (at > 0 && isAbsolute(path)) return [argument.slice(0, at), path];
  throw new CheckpointError('USAGE', `"${argument}" is no disk and absolute path`, {
    hint: 'for example --disk vda=/srv/web2.qcow2',
  });
}

async function throughCommand(xml: string, edits: DescriptionEdits | undefined): Promise<string> {
  if (edits?.command === undefined) return xml;
  const child = spawn('/bin/sh', ['-c', edits.command], { stdio: ['pipe', 'pipe', 'inherit'] });
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  // A command that does not read all of it is free to.
  child.stdin.on('error', () => undefined);
  child.stdin.end(xml);
  const edited = (await text(child.stdout)).trim();
  const status = await ended;
  if (status === 0 && edited.startsWith('<domain') && !edited.includes('\0')) return edited;
  throw new CheckpointError(
    'USAGE',
    status === 0
      ? 'the command of --xml-edit wrote something that is no domain'
      : `the command of --xml-edit failed (status ${status ?? 'unknown'})`,
    { hint: 'it gets the domain XML on stdin and writes the whole changed XML to stdout' },
  );
}
