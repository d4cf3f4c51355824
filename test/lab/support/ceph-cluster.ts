/**
 * A Ceph cluster for a test: one monitor and one OSD in memory, on 127.0.0.1, without authentication; where it is
 * asked for, with a RADOS gateway, which is an object store that speaks S3.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { appendFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { SOURCE_ROOT } from './lab-files.js';

const COMMAND_LIMIT_MS = 120_000;
/** Until the monitor has heard of it. */
const FULL_POLL_MS = 500;

/** @returns why there can be no cluster, empty when there can */
export function whyNoCeph(): string {
  const script = join(SOURCE_ROOT, 'test/lab/setup/ensure-ceph.sh');
  const check = spawnSync('bash', [script, '--check'], { encoding: 'utf8' });
  if (check.status === 0) return '';
  return check.stderr.trim() || `ensure-ceph.sh ended with status ${check.status ?? '?'}`;
}

const GATEWAY = 'client.rgw.lab';
const GATEWAY_KEYS = { accessKey: 'CAIRNLAB', secretKey: 'cairn-lab-secret' };

export interface Gateway {
  readonly endpoint: string;
  readonly accessKey: string;
  readonly secretKey: string;
}

const running = new Set<CephCluster>();

process.once('exit', () => {
  for (const cluster of running) {
    cluster.killAll();
    rmSync(cluster.dir, { recursive: true, force: true });
  }
});

export class CephCluster {
  readonly dir: string;

  private constructor(dir: string) {
    this.dir = dir;
  }

  get conf(): string {
    return join(this.dir, 'ceph.conf');
  }

  /** @param dir folder for all that it writes, made and removed by this */
  static async start(dir: string): Promise<CephCluster> {
    const cluster = new CephCluster(dir);
    running.add(cluster);
    try {
      await cluster.#start();
    } catch (error) {
      await cluster.destroy();
      throw error;
    }
    return cluster;
  }

  createPool(name: string): void {
    this.#run('ceph', 'osd', 'pool', 'create', name, '8');
    this.#run('ceph', 'osd', 'pool', 'application', 'enable', name, 'rbd');
  }

  rbd(...args: readonly string[]): string {
    return this.#run('rbd', '--conf', this.conf, ...args);
  }

  /** Starts the gateway. @returns where it is, and how one is let in */
  async startGateway(): Promise<Gateway> {
    const port = await freePort();
    mkdirSync(join(this.dir, 'gateway'));
    appendFileSync(this.conf, gatewayConf(this.dir, port));
    const { accessKey, secretKey } = GATEWAY_KEYS;
    const user = ['user', 'create', '--uid=cairn', '--display-name=cairn'];
    // It makes its pools, which takes it some seconds.
    this.#run(
      'radosgw-admin',
      '-n',
      GATEWAY,
      ...user,
      `--access-key=${accessKey}`,
      `--secret-key=${secretKey}`,
    );
    const gateway = { endpoint: `http://127.0.0.1:${port}`, ...GATEWAY_KEYS };
    await this.#runGateway(gateway.endpoint);
    return gateway;
  }

  /** Kills the gateway; what it was asked for may be done or not. @returns once it is gone */
  async killGateway(): Promise<void> {
    const pid = this.#pidOf('gateway');
    kill(pid);
    while (isAlive(pid)) await sleep(20);
  }

  /** Starts it again after `killGateway`. */
  async restartGateway({ endpoint }: Gateway): Promise<void> {
    await this.#runGateway(endpoint);
  }

  async #runGateway(endpoint: string): Promise<void> {
    this.#run('radosgw', '-n', GATEWAY);
    const untilMs = Date.now() + COMMAND_LIMIT_MS;
    while (
      !(await fetch(endpoint).then(
        ({ ok }) => ok,
        () => false,
      ))
    ) {
      if (Date.now() > untilMs) throw new Error('the gateway does not answer');
      await sleep(50);
    }
  }

  /** @param image as rbd(8) has it: POOL/IMAGE */
  snapshotsOf(image: string): readonly string[] {
    const list = JSON.parse(this.rbd('snap', 'ls', '--format=json', image)) as { name: string }[];
    return list.map(({ name }) => name);
  }

  watcherCount(image: string): number {
    const status = JSON.parse(this.rbd('status', '--format=json', image)) as { watchers: unknown[] };
    return status.watchers.length;
  }

  /** A shell command after which nothing is answered that needs an object, until `goOn`. */
  get hangCommand(): string {
    return `kill -STOP $(cat ${join(this.dir, 'osd.0.pid')})`;
  }

  goOn(): void {
    process.kill(this.#pidOf('osd.0'), 'SIGCONT');
  }

  /** As when all space is used up: reads are answered, writes of clients (a new snapshot too) wait until `empty`. */
  async fill(): Promise<void> {
    await this.#setFull(true);
  }

  async empty(): Promise<void> {
    await this.#setFull(false);
  }

  /** The client of a VM may have to make itself known again after the cluster hung. */
  async waitForWatcher(image: string): Promise<void> {
    while (this.watcherCount(image) === 0) await sleep(500);
  }

  /** SHA-256 of what is in an image, or in a snapshot of it (POOL/IMAGE@SNAPSHOT). */
  contentOf(image: string): string {
    const script = 'set -o pipefail; rbd --conf "$1" export --no-progress "$2" - | sha256sum';
    return this.#run('bash', '-c', script, 'bash', this.conf, image);
  }

  /** Ends its daemons, and every program that waits for them. Removes its folder. */
  async destroy(): Promise<void> {
    const pids = this.killAll();
    while (pids.some(isAlive)) await sleep(20);
    rmSync(this.dir, { recursive: true, force: true });
    running.delete(this);
  }

  /** @returns whom it has told to end: they may not have yet */
  killAll(): readonly number[] {
    const daemons = ['gateway', 'osd.0', 'mon.a']
      .map((daemon) => this.#pidOf(daemon))
      .filter((pid) => pid !== 0);
    // An `rbd` without a cluster waits for ever. The path of the ceph.conf is of this cluster alone.
    const pids = [...daemons, ...processesWith(this.conf)];
    for (const pid of pids) kill(pid);
    return pids;
  }

  async #start(): Promise<void> {
    const { dir } = this;
    mkdirSync(join(dir, 'mon'), { recursive: true });
    mkdirSync(join(dir, 'osd'));
    const fsid = randomUUID();
    const addresses = `[v2:127.0.0.1:${await freePort()},v1:127.0.0.1:${await freePort()}]`;
    writeFileSync(this.conf, confOf(dir, fsid, addresses));
    const monmap = join(dir, 'monmap');
    this.#run('monmaptool', '--create', '--fsid', fsid, '--addv', 'a', addresses, monmap);
    this.#run('ceph-mon', '--mkfs', '-i', 'a', '--monmap', monmap);
    this.#run('ceph-mon', '-i', 'a');
    const osd = randomUUID();
    this.#run('ceph', 'osd', 'new', osd);
    this.#run('ceph-osd', '-i', '0', '--mkfs', '--osd-uuid', osd);
    this.#run('ceph-osd', '-i', '0');
  }

  async #setFull(isFull: boolean): Promise<void> {
    this.#run('ceph', 'tell', 'osd.0', 'injectfull', isFull ? 'full' : 'none');
    while (/^pool .*\bfull\b/m.test(this.#run('ceph', 'osd', 'dump')) !== isFull) await sleep(FULL_POLL_MS);
  }

  #run(program: string, ...args: readonly string[]): string {
    const env = { ...process.env, CEPH_CONF: this.conf };
    return execFileSync(program, args, {
      env,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: COMMAND_LIMIT_MS,
    });
  }

  /** 0 when it was not started. */
  #pidOf(daemon: string): number {
    try {
      return Number(readFileSync(join(this.dir, `${daemon}.pid`), 'utf8'));
    } catch {
      return 0;
    }
  }
}

/**
 * A client that was killed is forgotten after 12 s instead of 30: one that lives says so every 5 s. The grace is what a placement group
 * without replicas may be read for (times 0.8); once that is over, because the OSD was stopped, it never becomes readable again.
 */
function confOf(dir: string, fsid: string, addresses: string): string {
  return `[global]
fsid = ${fsid}
mon host = ${addresses}
auth cluster required = none
auth service required = none
auth client required = none
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = ${dir}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon max pg per osd = 2000
osd crush chooseleaf type = 0
osd heartbeat grace = 3600
mon allow pool size one = true
mon data avail crit = 1
mon data avail warn = 1
[mon]
mon data = ${join(dir, 'mon')}
[osd]
osd data = ${join(dir, 'osd')}
osd objectstore = memstore
memstore device bytes = 1073741824
osd client watch timeout = 12
${['mon', 'osd']
  .map(
    (daemon) => `[${daemon}]
log file = ${dir}/$name.log
pid file = ${dir}/$name.pid
admin socket = ${dir}/$name.asok
`,
  )
  .join('')}`;
}

/** It would have its talk with the monitor encrypted, which takes authentication. */
function gatewayConf(dir: string, port: number): string {
  return `[${GATEWAY}]
ms mon client mode = crc
rgw data = ${join(dir, 'gateway')}
rgw frontends = beast endpoint=127.0.0.1:${port}
rgw enable usage log = false
rgw run sync thread = false
log file = ${join(dir, 'gateway.log')}
pid file = ${join(dir, 'gateway.pid')}
admin socket = ${join(dir, 'gateway.asok')}
`;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}

/** Processes that have the text as an argument, or in one. */
function processesWith(text: string): readonly number[] {
  const pids = readdirSync('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && pid !== process.pid);
  return pids.filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(text);
    } catch {
      return false;
    }
  });
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // Gone already.
  }
}
