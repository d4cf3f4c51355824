/**
 * Names the process that something belongs to, in a form that a later process can check: is it certain that
 * the owner is gone?
 *
 * A process id alone means little: ids are reused, every container has its own set, and a shared file system
 * is written from many hosts. Gone is only what can be proven; everything else counts as alive. Source:
 * proc(5) (stat field 22, random/boot_id, ns/pid), machine-id(5).
 */

import { readFileSync, readlinkSync } from 'node:fs';
import { hostname } from 'node:os';

import { processStartTimeSync } from './process-identity.js';

export interface ProcessOwner {
  /** Changes with every boot of the host. */
  readonly bootId: string;
  /** Empty when the host has none. */
  readonly machineId: string;
  readonly hostName: string;
  /** Process ids are comparable only within the same one. */
  readonly pidNamespace: string;
  readonly pid: number;
  /** Clock ticks since boot; tells a process from a later one with the same id. */
  readonly startTime: string;
}

const UNKNOWN = 'unknown';

let self: ProcessOwner | undefined;

export function thisProcess(): ProcessOwner {
  self ??= {
    bootId: readOr('/proc/sys/kernel/random/boot_id', UNKNOWN),
    machineId: readOr('/etc/machine-id', ''),
    hostName: hostname(),
    pidNamespace: pidNamespace(),
    pid: process.pid,
    startTime: processStartTimeSync(process.pid),
  };
  return self;
}

/**
 * What this process can tell of an owner by itself:
 *
 *     gone        its process was one of this boot, seen from here, and has ended
 *     alive       it is one, and runs
 *     unseen      it is of this machine, as far as names go, but of another boot or container: that has
 *                 ended, or the owner runs on a copy of this machine, which has the same names
 *     elsewhere   it is of another machine
 */
export type Fate = 'gone' | 'alive' | 'unseen' | 'elsewhere';

export function fateOf(owner: ProcessOwner): Fate {
  const here = thisProcess();
  if (owner.bootId === here.bootId && here.bootId !== UNKNOWN) {
    if (owner.pidNamespace !== here.pidNamespace || here.pidNamespace === UNKNOWN) return 'unseen';
    const isThere = owner.startTime !== '' && processStartTimeSync(owner.pid) === owner.startTime;
    return isThere ? 'alive' : 'gone';
  }
  const isNamedAlike =
    owner.machineId !== '' && owner.machineId === here.machineId && owner.hostName === here.hostName;
  return isNamedAlike ? 'unseen' : 'elsewhere';
}

/** True only when `owner` cannot be running any more, as seen from this process. */
export function isCertainlyGone(owner: ProcessOwner): boolean {
  return fateOf(owner) === 'gone';
}

function pidNamespace(): string {
  try {
    return readlinkSync('/proc/self/ns/pid');
  } catch {
    return UNKNOWN;
  }
}

function readOr(path: string, fallback: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return fallback;
  }
}
