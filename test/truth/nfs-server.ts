/**
 * Debian's NFS server in the emulated machine, and two hosts that mount what it exports. A host is a network namespace with a name of its
 * own: its client knows nothing of what the other's has in its caches.
 *
 *     host a  10.9.1.2 --- 10.9.1.1  server: ext4 in a file
 *     host b  10.9.2.2 --- 10.9.2.1
 */

import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, readlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export type NfsHost = 'a' | 'b';

const SIZE_BYTES = 1536 << 20;
const THREADS = '4';
/** After a restart the server waits so long for clients that were there before. */
const GRACE_SECONDS = '10';
const LOOP = '/dev/loop3';
/** As another host has it. */
const OTHER_BOOT_ID = '6f3d2c1b-0000-4000-8000-00000000000b';

const NETS: Readonly<Record<NfsHost, string>> = { a: '10.9.1', b: '10.9.2' };

function sh(command: string): string {
  return execFileSync('sh', ['-ec', command], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

export class NfsServer {
  /** What is exported, as the server has it. */
  readonly folder = '/srv/export';
  readonly #hosts: Readonly<Record<NfsHost, ChildProcess>>;

  private constructor(hosts: Readonly<Record<NfsHost, ChildProcess>>) {
    this.#hosts = hosts;
  }

  static async start(): Promise<NfsServer> {
    for (const module of readFileSync('/lib/modules/order-nfs', 'latin1').trim().split('\n'))
      sh(`insmod /lib/modules/${module}.ko`);
    const hosts = { a: await startHost('a'), b: await startHost('b') };
    const server = new NfsServer(hosts);
    const { folder } = server;
    for (const path of [folder, '/var/lib/nfs/sm', '/var/lib/nfs/nfsdcld', '/run/rpc_pipefs', '/run/rpcbind'])
      mkdirSync(path, { recursive: true });
    for (const name of ['etab', 'rmtab']) writeFileSync(join('/var/lib/nfs', name), '');
    const image = '/tmp/export.img';
    writeFileSync(image, '');
    truncateSync(image, SIZE_BYTES);
    sh(`/usr/bin/mke2fs -q -t ext4 -F ${image}; losetup ${LOOP} ${image}; mount -t ext4 ${LOOP} ${folder}`);
    sh('mount -t nfsd nfsd /proc/fs/nfsd; mount -t rpc_pipefs pipefs /run/rpc_pipefs');
    writeFileSync('/proc/fs/nfsd/nfsv4leasetime', GRACE_SECONDS);
    writeFileSync('/proc/fs/nfsd/nfsv4gracetime', GRACE_SECONDS);
    // The kernel looks for the socket of rpcbind below /var/run.
    sh('ln -s /run /var/run; rpcbind -w </dev/null >/dev/null 2>&1; rpc.mountd; nfsdcld');
    sh(`exportfs -o rw,sync,no_root_squash,no_subtree_check '*:${folder}'`);
    server.up();
    return server;
  }

  up(): void {
    sh(`rpc.nfsd ${THREADS}`);
  }

  /** It forgets what it has answered, and its clients' state. */
  down(): void {
    sh('rpc.nfsd 0');
  }

  /** Requests that write wait from now on. */
  freeze(): void {
    sh(`fsfreeze --freeze ${this.folder}`);
  }

  /** Whether one does. */
  isWriteWaiting(): boolean {
    return sh("grep -l '^nfsd$' /proc/[0-9]*/comm || :")
      .split('\n')
      .filter((path) => path !== '')
      .some((path) => readFileSync(path.replace('comm', 'stat'), 'latin1').includes(') D '));
  }

  /** What waits is carried out, and neither that nor anything else of a host is answered. */
  thawMuted(host: NfsHost): void {
    sh(`ip route add blackhole ${NETS[host]}.2/32; fsfreeze --unfreeze ${this.folder}`);
  }

  unmute(host: NfsHost): void {
    sh(`ip route del blackhole ${NETS[host]}.2/32`);
  }

  /** @param options of mount(8) */
  mount(host: NfsHost, folder: string, options: string): void {
    const pid = `${this.#hosts[host].pid!}`;
    sh(`nsenter -t ${pid} -n -u mount.nfs ${NETS[host]}.1:${this.folder} ${folder} -o ${options}`);
  }

  /** What a program of host b is started by: it sees other processes, and another boot. */
  static readonly asHostB: readonly string[] = [
    ...['unshare', '-m', '-u', '-p', '-f', 'sh', '-c'],
    `hostname b; mount -t proc proc /proc; mount --bind /tmp/boot-id-b /proc/sys/kernel/random/boot_id; exec "$@"`,
    'sh',
  ];
}

/** Its network, up. */
async function startHost(host: NfsHost): Promise<ChildProcess> {
  writeFileSync('/tmp/boot-id-b', `${OTHER_BOOT_ID}\n`);
  const child = spawn('unshare', ['-n', '-u', 'sh', '-c', `hostname ${host}; exec sleep 1000000`], {
    stdio: 'ignore',
  });
  const pid = child.pid!;
  const own = readlinkSync('/proc/self/ns/net');
  while (!existsSync(`/proc/${pid}/ns/net`) || readlinkSync(`/proc/${pid}/ns/net`) === own) await sleep(20);
  const net = NETS[host];
  // The kernel names the other end veth0.
  sh(`ip link add host-${host} type veth; ip link set veth0 netns ${pid}`);
  sh(`ip addr add ${net}.1/24 dev host-${host}; ip link set host-${host} up`);
  sh(
    `nsenter -t ${pid} -n sh -ec 'ip addr add ${net}.2/24 dev veth0; ip link set veth0 up; ip link set lo up'`,
  );
  return child;
}
