/** All that is decided before a fork touches anything: may it be, and how each child is started. */

import { realpath } from 'node:fs/promises';
import { join } from 'node:path';

import { CheckpointError } from '../../../src/errors.js';
import type { ForkedDisk } from '../../../src/hypervisor/disk-driver.js';
import type { ForkRequest } from '../../../src/hypervisor/fork.js';
import type { CheckpointSource } from '../../../src/hypervisor/restore.js';
import { disksOfStoppedQemu } from '../../disks/disk-drivers.js';
import { claimsOf, type Claim } from '../restore/claims.js';
import { recordedMachine } from '../restore/machine.js';
import { FIRST_INHERITED } from '../restore/process.js';
import { serverPaths } from '../restore/sockets.js';
import type { StartRights } from '../restore/start-rights.js';
import { allowStart, planStart, type PlannedStart } from '../restore/start.js';
import { restoredCommandLine } from '../restore/argv.js';
import { childOptions, templateBlocks, type ChildOptions, type TemplateBlock } from './child-options.js';
import { refuseMachine } from './refusals.js';
import { refused } from './refused.js';

export interface PlannedChild extends Omit<ChildOptions, 'options'> {
  readonly name: string;
  readonly folder: string;
  readonly start: PlannedStart;
}

export interface ForkPlan {
  readonly blocks: readonly TemplateBlock[];
  readonly disks: readonly ForkedDisk[];
  readonly children: readonly PlannedChild[];
  readonly rights: StartRights;
}

/** Of a path of a unix socket (sun_path, unix(7)), without the NUL. */
const MAX_SOCKET_PATH_BYTES = 107;

/** @throws see `Hypervisor.planForks` */
export async function planChildren(source: CheckpointSource, request: ForkRequest): Promise<ForkPlan> {
  const { machine, layout } = source;
  const recorded = restoredCommandLine(recordedMachine(machine), { paused: true });
  refuseMachine(recorded.options);
  const blocks = templateBlocks(recorded.options, layout);
  const disks = forkedDisks(source);
  for (const disk of disks) await disk.check();
  const takenMacs = new Set<string>();
  const children: PlannedChild[] = [];
  for (const name of request.names) {
    const folder = join(request.folder, name);
    const start = await planStart(machine, { paused: true, newName: name, ownFolder: folder });
    const descriptorOf = (id: string): number =>
      FIRST_INHERITED + blocks.findIndex((block) => block.id === id);
    const { options, ...own } = childOptions(start.options, blocks, descriptorOf, takenMacs);
    children.push({ ...own, name, folder, start: { ...start, options } });
  }
  for (const child of children) {
    await refuseShared(child, disks);
    refuseLongPaths(child);
  }
  const rights = await allowStart(children[0]!.start, false);
  return { blocks, disks, children, rights };
}

/** @throws FORK_REFUSED, DISK_NOT_COVERED, VM_UNSUPPORTED */
function forkedDisks({ machine, disks, checkpointId }: CheckpointSource): readonly ForkedDisk[] {
  const forks = disksOfStoppedQemu(machine).forks(disks);
  for (const { temporary, device } of recordedMachine(machine).presentDisks ?? []) {
    if (temporary !== true) continue;
    throw new CheckpointError('DISK_NOT_COVERED', `what ${device} holds ended with its QEMU (-snapshot)`, {
      hint: 'run it without -snapshot',
      detail: { disk: device },
    });
  }
  return forks.map((disk, i) => {
    if (disk !== undefined) return disk;
    const { driver, path } = disks[i]!;
    throw refused('DISK_DRIVER', `checkpoint ${checkpointId} has ${path} as a snapshot by ${driver}`, {
      hint: 'children stand on qcow2 images: take the checkpoint with --disks external or internal',
      detail: { driver, path },
    });
  });
}

/** Whatever is left outside of the child's folder would be had by all of them, and by the VM itself. */
async function refuseShared({ start, folder }: PlannedChild, disks: readonly ForkedDisk[]): Promise<void> {
  const covered = new Set<string>();
  for (const { path } of disks) covered.add(path).add(await realOrSame(path));
  for (const claim of claimsOf(start.options, start.cwd)) {
    if (claim.kind === 'private-memory' || isIn(folder, claim)) continue;
    const isFile = claim.kind === 'file';
    if (isFile && (covered.has(claim.path) || covered.has(await realOrSame(claim.path)))) continue;
    if (isFile && /^-+(?:drive|blockdev|hd[a-d]|sd|pflash|mtdblock|fd[ab])\b|^[^-]/.test(claim.option)) {
      throw new CheckpointError('DISK_NOT_COVERED', `the checkpoint does not hold the disk ${claim.path}`, {
        hint: 'take a checkpoint with its disks (without --memory-only), or make the disk read-only',
        detail: { path: claim.path },
      });
    }
    throw refused('SHARED_RESOURCE', `only one of them could have what ${claim.option} names`, {
      hint:
        claim.kind === 'tap'
          ? 'start the VM with -netdev bridge, or -netdev tap without ifname, so that each child gets a device of its own'
          : 'start the VM without it, or fork a checkpoint of one that has none',
      detail: { argument: claim.option },
    });
  }
}

function isIn(folder: string, claim: Claim): boolean {
  return 'path' in claim && claim.path.startsWith(`${folder}/`);
}

function refuseLongPaths({ start, folder }: PlannedChild): void {
  const paths = [start.qmpPath, ...serverPaths(start.options, start.cwd)];
  const long = paths.find((path) => Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES);
  if (long === undefined) return;
  throw refused('PATH_TOO_LONG', `${long} is too long for a socket`, {
    hint: 'name a folder with a shorter path with --dir, or a shorter --name',
    detail: { path: long, folder },
  });
}

async function realOrSame(path: string): Promise<string> {
  return realpath(path).catch(() => path);
}
