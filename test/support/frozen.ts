/**
 * Freezing a process with a control group of its own (cgroup v1 freezer, cgroup v2), where the host lets a
 * test make one.
 */

import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export interface Freezer {
  readonly name: string;
  /** @returns what thaws the process and removes the group */
  readonly freeze: (pid: number) => Promise<() => Promise<void>>;
}

interface Kind {
  readonly name: string;
  readonly root: string;
  readonly control: string;
  readonly freezeWord: string;
  readonly thawWord: string;
  readonly report: string;
  readonly frozen: RegExp;
}

const V2 = {
  name: 'cgroup v2',
  control: 'cgroup.freeze',
  freezeWord: '1',
  thawWord: '0',
  report: 'cgroup.events',
  frozen: /^frozen 1$/m,
};
const KINDS: readonly Kind[] = [
  {
    name: 'cgroup v1',
    root: '/sys/fs/cgroup/freezer',
    control: 'freezer.state',
    freezeWord: 'FROZEN',
    thawWord: 'THAWED',
    report: 'freezer.state',
    frozen: /^FROZEN$/m,
  },
  { ...V2, root: '/sys/fs/cgroup/unified' },
  { ...V2, root: '/sys/fs/cgroup' },
];

/** The freezers that can be used here; empty on most hosts for anybody but root. */
export function freezers(): readonly Freezer[] {
  return KINDS.filter((kind) => {
    const group = join(kind.root, `cairn-probe-${process.pid}`);
    try {
      mkdirSync(group);
    } catch {
      return false;
    }
    const usable = existsSync(join(group, kind.control));
    rmdirSync(group);
    return usable;
  }).map((kind) => ({ name: kind.name, freeze: (pid) => freeze(kind, pid) }));
}

async function freeze(kind: Kind, pid: number): Promise<() => Promise<void>> {
  const group = join(kind.root, `cairn-test-${pid}`);
  mkdirSync(group);
  writeFileSync(join(group, 'cgroup.procs'), `${pid}`);
  writeFileSync(join(group, kind.control), kind.freezeWord);
  while (!kind.frozen.test(readFileSync(join(group, kind.report), 'latin1'))) await sleep(5);
  return async () => {
    writeFileSync(join(group, kind.control), kind.thawWord);
    writeFileSync(join(kind.root, 'cgroup.procs'), `${pid}`);
    while (readFileSync(join(group, 'cgroup.procs'), 'latin1') !== '') await sleep(5);
    rmdirSync(group);
  };
}
