/** The lab's guest as a domain of libvirt. */

import { execFile, execFileSync, spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { LabMachine } from './machine.js';
import { CAIRN_MAIN } from '../support/cairn-main.js';
import type { CliOptions } from './support/cairn-cli.js';
import { readRamBlocks } from './support/ground-truth.js';
import {
  ensureLab,
  GUEST_COMMAND_LINE,
  labCache,
  qemuProgram,
  scratchDir,
  SOURCE_ROOT,
  type QemuVersion,
} from './support/lab-files.js';
import { removeWithRepositories } from './support/left-repositories.js';

const SYSTEM_MODULES = '/usr/lib/x86_64-linux-gnu/qemu';

/** `nobody`, who owns nothing else. */
const USER_ID = 65534;

/** Empty when libvirt can be used; else why not. */
export function whyNoLibvirt(): string {
  const setup = spawnSync('bash', [join(SOURCE_ROOT, 'test/lab/setup/ensure-libvirt.sh')], {
    encoding: 'utf8',
  });
  process.stderr.write(setup.stdout);
  return setup.status === 0 ? '' : setup.stderr.trim() || 'libvirt cannot be set up here';
}

/** Empty when another user's libvirt can be used as well; else why not. */
export function whyNoSession(): string {
  if (process.getuid?.() !== 0) return 'becoming another user needs root';
  const { status } = spawnSync(process.execPath, [CAIRN_MAIN, '--version'], { uid: USER_ID, gid: USER_ID });
  return status === 0 ? '' : `user ${USER_ID} cannot run ${CAIRN_MAIN}`;
}

export const TPM_XML = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";

/**
 * Empty when libvirt starts a domain with a TPM; else its own words. Installed packages do not answer it: swtpm_setup also
 * needs certificates, a log and state in folders of its user, and leftovers of another user there make it fail.
 */
export function whyNoTpm(): string {
  const path = join(tmpdir(), `cairn-tpm-${process.pid}.xml`);
  const name = `cairn-tpm-${process.pid}`;
  writeFileSync(
    path,
    `<domain type='qemu'><name>${name}</name><memory unit='MiB'>32</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>${TPM_XML}</devices></domain>`,
  );
  const virsh = (...args: readonly string[]): { readonly status: number | null; readonly stderr: string } =>
    spawnSync('virsh', ['-q', '-c', 'qemu:///system', ...args], { encoding: 'utf8' });
  const { status, stderr } = virsh('create', path, '--paused');
  if (status === 0) virsh('destroy', name);
  rmSync(path);
  return status === 0 ? '' : stderr.trim().replaceAll('\n', '; ');
}

const AGENT_XML = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";

export interface LabDomainOptions {
  /** Of the unprivileged user's libvirt instead of the system's. */
  readonly session?: boolean;
  /** Put into the XML: below <domain>, below <devices>. */
  readonly domainXml?: string;
  readonly devicesXml?: string;
  /** For QEMU's command line, past libvirt. */
  readonly qemuArgs?: readonly string[];
  /** Below <os>. @param dir folder of the domain */
  readonly osXml?: (dir: string) => string;
  /** qemu-ga in the guest, started by its command start-agent. */
  readonly withAgent?: boolean;
  /** Default: the system's. */
  readonly qemu?: QemuVersion;
}

export class LabDomain {
  readonly name: string;
  readonly dir: string;
  /** Repositories below the folder that the test has damaged: `remove` does not read them. */
  readonly damagedOnPurpose = new Set<string>();
  readonly #options: LabDomainOptions;

  private constructor(name: string, dir: string, options: LabDomainOptions) {
    this.name = name;
    this.dir = dir;
    this.#options = options;
  }

  static async define(name: string, options: LabDomainOptions = {}): Promise<LabDomain> {
    ensureLab();
    const dir = scratchDir(name);
    // QEMU runs as another user there, and opens sockets in it; what others have in it stays theirs.
    chmodSync(dir, 0o1777);
    const initrd = options.withAgent === true ? 'initrd-agent.gz' : 'initrd.gz';
    copyFileSync(join(labCache(), 'guest/vmlinuz'), join(dir, 'vmlinuz'));
    copyFileSync(join(labCache(), 'guest', initrd), join(dir, 'initrd.gz'));
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', join(dir, 'disk.qcow2'), '256M']);
    writeFileSync(join(dir, 'domain.xml'), domainXml(name, dir, emulatorFor(dir, options), options));
    const domain = new LabDomain(name, dir, options);
    if (options.session === true) {
      for (const folder of ['home', 'run', 'runtime']) mkdirSync(join(dir, folder), { mode: 0o700 });
      for (const path of ['home', 'run', 'runtime', 'disk.qcow2'])
        chownSync(join(dir, path), USER_ID, USER_ID);
    }
    await domain.virsh('define', join(dir, 'domain.xml'));
    return domain;
  }

  get uri(): string {
    return this.#options.session === true ? 'qemu:///session' : 'qemu:///system';
  }

  get address(): string {
    return this.addressOf(this.name);
  }

  addressOf(name: string): string {
    return this.#options.session === true ? `libvirt:${this.uri}#${name}` : `libvirt:${name}`;
  }

  /** For the command line, run by whoever owns the domain. */
  get cli(): CliOptions {
    return { dir: this.dir, ...this.#owner() };
  }

  async virsh(...args: readonly string[]): Promise<string> {
    const { stdout } = await promisify(execFile)('virsh', ['-q', '-c', this.uri, ...args], this.#owner());
    return stdout.trim();
  }

  async start(): Promise<LabMachine> {
    await this.virsh('start', this.name);
    const machine = await this.adopt();
    await machine.waitForTick(1, 120_000);
    return machine;
  }

  /** The running domain, restored perhaps, with the lab's view of its guest. */
  adopt(name = this.name, dir = this.dir): Promise<LabMachine> {
    const folder =
      this.#options.session === true ? join(this.dir, 'run/libvirt/qemu/run') : '/run/libvirt/qemu';
    return LabMachine.adopt(name, dir, Number(readFileSync(join(folder, `${name}.pid`), 'latin1')));
  }

  state(name = this.name): Promise<string> {
    return this.virsh('domstate', name);
  }

  /** Image of vda, as virsh says. */
  async diskPath(...options: readonly string[]): Promise<string> {
    return (await this.virsh('domblklist', this.name, ...options)).replace(/^\s*vda\s+/, '');
  }

  /** Names of the lifecycle events, as `virsh event` prints them, until the returned function is called. */
  listen(): () => Promise<readonly string[]> {
    const child = spawn(
      'virsh',
      ['-c', this.uri, 'event', this.name, '--event', 'lifecycle', '--loop'],
      this.#owner(),
    );
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
    return async () => {
      await sleep(200);
      child.kill('SIGINT');
      await new Promise((resolve) => child.once('close', resolve));
      return [...text.matchAll(/'lifecycle' for domain .*?: (\w+)/g)].map((match) => match[1]!);
    };
  }

  /**
   * The truth about the memory of the paused domain: QEMU's own migration stream into a file that virsh passes to it,
   * since a QEMU of libvirt may neither start programs nor open files.
   */
  async groundTruth(name = this.name): Promise<Map<string, Buffer>> {
    const path = join(this.dir, 'truth.mig');
    const file = openSync(path, 'w');
    try {
      const passed = spawnSync(
        'virsh',
        [
          '-c',
          this.uri,
          'qemu-monitor-command',
          '--pass-fds',
          '3',
          name,
          command('getfd', { fdname: 'truth' }),
        ],
        { ...this.#owner(), stdio: ['ignore', 'pipe', 'pipe', file], encoding: 'utf8' },
      );
      if (passed.status !== 0) throw new Error(`passing a file to QEMU: ${passed.stderr}`);
      await this.qmp('migrate-set-parameters', { 'max-bandwidth': 0x7fffffff }, name);
      await this.qmp('migrate', { uri: 'fd:truth' }, name);
      for (;;) {
        const { status } = (await this.qmp('query-migrate', {}, name)) as { status?: string };
        if (status === 'completed') break;
        if (status === 'failed') throw new Error('the migration into a file failed');
        await sleep(10);
      }
      return readRamBlocks(readFileSync(path));
    } finally {
      closeSync(file);
      rmSync(path, { force: true });
    }
  }

  /** Has the session's daemon, and the next one, go by this qemu.conf. No domain of it runs. */
  async configureSession(qemuConf: string): Promise<void> {
    const folder = join(this.dir, 'home/.config/libvirt');
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'qemu.conf'), qemuConf);
    for (const path of ['home/.config', 'home/.config/libvirt', 'home/.config/libvirt/qemu.conf'])
      chownSync(join(this.dir, path), USER_ID, USER_ID);
    const pidFile = join(this.dir, 'run/libvirt/libvirtd.pid');
    endDaemon(pidFile);
    // It removes the file when it ends; virsh starts another one.
    while (existsSync(pidFile)) await sleep(20);
  }

  /** A QMP command through virsh. */
  async qmp(execute: string, args: Record<string, unknown> = {}, name = this.name): Promise<unknown> {
    const reply = JSON.parse(await this.virsh('qemu-monitor-command', name, command(execute, args))) as {
      readonly return?: unknown;
    };
    if (reply.return === undefined) throw new Error(`${execute}: ${JSON.stringify(reply)}`);
    return reply.return;
  }

  async stop(name = this.name): Promise<void> {
    await this.virsh('destroy', name).catch(() => '');
  }

  /** @throws when a repository in the folder is not as it should be; the domain and the folder are gone then, too */
  async remove(): Promise<void> {
    await this.stop();
    await this.virsh('undefine', this.name, '--snapshots-metadata').catch(() => '');
    if (this.#options.session === true) {
      for (const daemon of ['libvirtd', 'virtlogd']) endDaemon(join(this.dir, `run/libvirt/${daemon}.pid`));
    }
    removeWithRepositories(this.dir, this.damagedOnPurpose);
  }

  #owner(): { readonly uid?: number; readonly gid?: number; readonly env?: NodeJS.ProcessEnv } {
    if (this.#options.session !== true) return {};
    return {
      uid: USER_ID,
      gid: USER_ID,
      env: {
        ...process.env,
        HOME: join(this.dir, 'home'),
        XDG_RUNTIME_DIR: join(this.dir, 'run'),
        // The folders of the test run are root's.
        CAIRN_RUNTIME_DIR: join(this.dir, 'runtime'),
        CAIRN_STATE_DIR: join(this.dir, 'state'),
        TMPDIR: this.dir,
      },
    };
  }
}

/** A session's daemons would stay for two minutes. */
function endDaemon(pidFile: string): void {
  try {
    if (existsSync(pidFile)) process.kill(Number(readFileSync(pidFile, 'latin1')), 'SIGTERM');
  } catch {
    // Gone already.
  }
}

function command(execute: string, args: Record<string, unknown>): string {
  return JSON.stringify({ execute, arguments: args });
}

/** A program that the user of libvirt's QEMUs may run: the lab's own lies in somebody's home. */
function emulatorFor(dir: string, { qemu = '7.2' }: LabDomainOptions): string {
  if (qemu === '7.2') return qemuProgram('7.2').path;
  const root = join(dir, 'qemu');
  cpSync(join(labCache(), 'qemu-10'), root, { recursive: true, verbatimSymlinks: true });
  const { path, firmwareArgs, env } = qemuProgram(qemu, root);
  const wrapper = join(dir, 'qemu-system-x86_64');
  const libraries = env.LD_LIBRARY_PATH ?? '';
  // It would look for a module that it does not have among those of the system's QEMU, and end. An empty file stops it.
  const modules = join(libraries, 'qemu');
  for (const name of readdirSync(SYSTEM_MODULES))
    if (!existsSync(join(modules, name))) writeFileSync(join(modules, name), '');
  const variables = `LD_LIBRARY_PATH=${libraries} QEMU_MODULE_DIR=${modules}`;
  writeFileSync(wrapper, `#!/bin/sh\n${variables} exec ${path} ${firmwareArgs.join(' ')} "$@"\n`, {
    mode: 0o755,
  });
  return wrapper;
}

function domainXml(name: string, dir: string, emulator: string, options: LabDomainOptions): string {
  return `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>${name}</name>
  ${options.domainXml ?? "<memory unit='MiB'>256</memory><vcpu>1</vcpu>"}
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>${dir}/vmlinuz</kernel>
    <initrd>${dir}/initrd.gz</initrd>
    <cmdline>${GUEST_COMMAND_LINE}</cmdline>
    ${options.osXml?.(dir) ?? ''}
  </os>
  <features><acpi/></features>
  <on_crash>preserve</on_crash>
  <devices>
    <emulator>${emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='${dir}/disk.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='${dir}/diary.log' append='on'/></serial>
    <serial type='unix'><source mode='bind' path='${dir}/agent.sock'/></serial>
    <memballoon model='virtio'/>
    ${options.devicesXml ?? ''}
    ${options.withAgent === true ? AGENT_XML : ''}
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:${dir}/harness.sock,server=on,wait=off'/>
    ${(options.qemuArgs ?? []).map((arg) => `<qemu:arg value='${arg}'/>`).join('')}
  </qemu:commandline>
</domain>
`;
}
