/**
 * Files that libvirt and QEMU themselves write, imported: every byte of memory is compared with what the file
 * holds by a reader that shares no code with the product, and a restored guest goes on from where it was
 * saved.
 */

import { closeSync, mkdirSync, openSync, readFileSync, rmSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { saveImage } from '../support/import-files.js';
import { LabDomain, whyNoLibvirt, whyNoSession } from './libvirt-domain.js';
import { LabMachine } from './machine.js';
import { cairn, runCairn, type CliMessage, type CliOptions } from './support/cairn-cli.js';
import { migrateToFile, readRamBlocks } from './support/ground-truth.js';
import { whyNoPackages, type QemuVersion } from './support/lab-files.js';
import { differingFromStored, warningsOf } from './support/oracle.js';

/** xz at its best takes half a minute. */
const COMMANDS = ['gzip -c', 'bzip2 -c', 'xz -1c', 'lzop -c', 'zstd -c'];
const FILL_MIB = 8;
/** As little as the guest gets by with: some of the programs are slow. */
const MEMORY_MIB = 96;
const DOMAIN = { domainXml: `<memory unit='MiB'>${MEMORY_MIB}</memory><vcpu>1</vcpu>` };

const noPrograms = whyNoPackages('gzip', 'bzip2', 'xz-utils', 'lzop', 'zstd');
if (noPrograms !== '') process.stderr.write(`skipped: compressed files: ${noPrograms}\n`);
const describeWithPrograms = noPrograms === '' ? describe : describe.skip;
const noLibvirt = noPrograms || whyNoLibvirt();
if (noLibvirt !== '') process.stderr.write(`skipped: images of virsh save: ${noLibvirt}\n`);
const describeWithLibvirt = noLibvirt === '' ? describe : describe.skip;
const noSession = noLibvirt || whyNoSession();
if (noSession !== '') process.stderr.write(`skipped: compressed images of virsh save: ${noSession}\n`);
const describeWithSession = noSession === '' ? describe : describe.skip;

type Truth = ReadonlyMap<string, Buffer>;

/** Memory in the stream of an image that is not compressed. */
function truthOfImage(path: string): Truth {
  const image = readFileSync(path);
  return readRamBlocks(image.subarray(92 + image.readUInt32LE(20)));
}

async function imported(
  path: string,
  repo: string,
  options: CliOptions,
  ...args: readonly string[]
): Promise<CliMessage> {
  return cairn(['import', path, '--repo', repo, ...args], options);
}

async function expectHolds(truth: Truth, repo: string, { checkpoint_id: id }: CliMessage): Promise<void> {
  expect(await differingFromStored(truth, repo, String(id))).toEqual([]);
}

describeWithLibvirt('a domain that virsh has put aside (managedsave)', () => {
  let domain: LabDomain;
  let repo = '';
  beforeAll(async () => {
    domain = await LabDomain.define(`cairn-imp-${process.pid}`, DOMAIN);
    repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], domain.cli);
  }, 120_000);
  afterAll(async () => {
    await domain.virsh('managedsave-remove', domain.name).catch(() => '');
    await domain.remove();
  });

  it('is imported whole, and goes on when cairn restores it', async () => {
    const machine = await domain.start();
    await machine.guest(`lab fill ${FILL_MIB}`);
    const checksum = await machine.guest('lab sum');
    await domain.virsh('managedsave', domain.name);
    const tick = machine.lastTick();
    machine.qmp.close();
    const path = `/var/lib/libvirt/qemu/save/${domain.name}.save`;
    const { messages, exitCode } = await runCairn(['import', path, '--repo', repo], domain.cli);
    expect(exitCode).toBe(0);
    expect(warningsOf(messages).join()).toContain(join(domain.dir, 'disk.qcow2'));
    const summary = messages.find(({ message_type }) => message_type === 'summary')!;
    expect(summary).toMatchObject({
      kind: 'base',
      vm_name: domain.name,
      warnings: [expect.stringContaining(join(domain.dir, 'disk.qcow2'))],
    });
    await expectHolds(truthOfImage(path), repo, summary);
    await domain.virsh('managedsave-remove', domain.name);

    const untrusted = await runCairn(['restore', 'latest', '--repo', repo], domain.cli);
    expect(untrusted.messages.at(-1)).toMatchObject({ code: 'RESTORE_UNTRUSTED' });
    const bytes = statSync(join(domain.dir, 'diary.log')).size;
    const restore = ['restore', 'latest', '--repo', repo, '--trust-machine'];
    expect(await cairn(restore, domain.cli)).toMatchObject({ vm_address: domain.address, running: true });
    const again = await domain.adopt();
    const first = await again.waitForTick(1, 60_000, bytes);
    expect(first.tick).toBeLessThanOrEqual(tick + 1);
    await again.waitForTick(first.tick + 3, 60_000, bytes);
    expect(await again.guest('lab sum')).toBe(checksum);
    again.qmp.close();
    // The same chain goes on with the running domain.
    expect(
      await cairn(['checkpoint', domain.address, '--repo', repo, '--memory-only'], domain.cli),
    ).toMatchObject({
      kind: 'incremental',
      vm_name: domain.name,
    });
  }, 240_000);
});

describeWithSession('a domain that virsh has saved', () => {
  /** All that libvirt 9.0 has. */
  const FORMATS = ['raw', 'gzip', 'bzip2', 'xz', 'lzop'];
  let domain: LabDomain;
  let repo = '';
  let truth: Truth;
  beforeAll(async () => {
    domain = await LabDomain.define(`ci-${process.pid}`, { ...DOMAIN, session: true });
    repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], domain.cli);
    const machine = await domain.start();
    await machine.guest(`lab fill ${FILL_MIB}`);
    machine.qmp.close();
    // Paused from here on, so that each image is of the same memory.
    await domain.virsh('suspend', domain.name);
  }, 180_000);
  afterAll(() => domain.remove());

  it.each(FORMATS)(
    'with save_image_format %s is imported to the same memory, and paused',
    async (format) => {
      const path = join(domain.dir, `${format}.save`);
      if (format !== 'raw') {
        await domain.stop();
        await domain.configureSession(`save_image_format = "${format}"\n`);
        await domain.virsh('restore', join(domain.dir, 'raw.save'), '--paused');
      }
      await domain.virsh('save', domain.name, path);
      if (format === 'raw') truth = truthOfImage(path);
      const image = readFileSync(path);
      expect([image.readUInt32LE(24), image.readUInt32LE(28)]).toEqual([0, FORMATS.indexOf(format)]);
      const summary = await imported(path, repo, domain.cli);
      expect(summary).toMatchObject({ kind: format === 'raw' ? 'base' : 'incremental' });
      await expectHolds(truth, repo, summary);
    },
    180_000,
  );

  it('comes back paused, and runs when it is resumed', async () => {
    const restore = [
      'restore',
      'latest',
      '--repo',
      repo,
      '--trust-machine',
      '--to',
      'libvirt:qemu:///session',
    ];
    expect(await cairn(restore, domain.cli)).toMatchObject({ running: false });
    expect(await domain.state()).toBe('paused');
    await domain.virsh('resume', domain.name);
    const again = await domain.adopt();
    await again.waitForProgress();
    again.qmp.close();
  }, 120_000);
});

describeWithPrograms.each<QemuVersion>(['7.2', '10.0'])(
  'a guest that QEMU %s has sent into a file',
  (qemu) => {
    let machine: LabMachine;
    let options: CliOptions;
    let repo = '';
    let checksum = '';
    const file = (name: string): string => join(machine.dir, name);

    beforeAll(async () => {
      machine = await LabMachine.start({ name: 'imports', qemu, memoryMib: MEMORY_MIB });
      options = { dir: machine.dir };
      repo = file('repo');
      await cairn(['init', '--repo', repo], options);
      await machine.guest(`lab fill ${FILL_MIB}`);
      checksum = await machine.guest('lab sum');
    }, 180_000);
    afterAll(() => machine.destroy());

    /** Saves the stopped guest. QEMU saves no guest twice that has not run in between. */
    async function save(uri: string, capabilities: readonly string[] = []): Promise<void> {
      const { qmp } = machine;
      await qmp.command('cont');
      await machine.waitForProgress();
      await qmp.command('stop');
      await qmp.command('migrate-set-capabilities', switched(capabilities, true));
      await qmp.command('migrate', { uri });
      await completed(machine, uri);
      await qmp.command('migrate-set-capabilities', switched(capabilities, false));
    }

    // The stream is compressed by the same programs whoever sends it.
    it.each(qemu === '7.2' ? COMMANDS : COMMANDS.slice(0, 1))(
      'through %s is imported to the same memory',
      async (command) => {
        await save(`exec:tee ${file('plain')} | ${command} > ${file('packed')}`);
        const truth = readRamBlocks(readFileSync(file('plain')));
        const summary = await imported(file('packed'), repo, options, '--name', 'web1');
        await expectHolds(truth, repo, summary);
        for (const name of ['plain', 'packed']) rmSync(file(name));
      },
      120_000,
    );

    const REFUSED: readonly (readonly [string, RegExp])[] = [
      ['x-ignore-shared', /x-ignore-shared was on; switch it off/],
      ...(qemu === '7.2' ? [['compress', /switch the capability compress off/] as const] : []),
    ];
    it.each(REFUSED)('with the capability %s is refused by that name', async (name, text) => {
      await save(`exec:cat > ${file('refused')}`, [name]);
      const { exitCode, messages } = await runCairn(
        ['import', file('refused'), '--repo', repo, '--name', 'web1'],
        options,
      );
      expect(exitCode).toBe(1);
      expect(messages.at(-1)).toMatchObject({
        code: 'STREAM_MALFORMED',
        message: expect.stringMatching(text),
      });
    });

    if (qemu === '10.0') {
      it('as mapped-ram is imported to the memory that QEMU loads from it', async () => {
        const uri = `file:${file('mapped')}`;
        await save(uri, ['mapped-ram']);
        const summary = await imported(file('mapped'), repo, options, '--name', 'web1');
        await expectHolds(await loaded(uri, ['mapped-ram']), repo, summary);
      }, 120_000);

      it('as mapped-ram by multifd behind the head of a save image, as libvirt 11 has it do, as well', async () => {
        const head = saveImage(new Uint8Array(0), { format: 6, xml: xmlOf('web2') });
        const uri = `file:${file('sparse')},offset=${head.length}`;
        const capabilities = ['mapped-ram', 'multifd'];
        await save(uri, capabilities);
        writeAtStart(file('sparse'), head);
        const summary = await imported(file('sparse'), repo, options);
        expect(summary).toMatchObject({ vm_name: 'web2' });
        await expectHolds(await loaded(uri, capabilities), repo, summary);
      }, 120_000);
    }

    it('goes on in a QEMU that waits', async () => {
      const target = `unix:${join(file('restored'), 'incoming')}`;
      const waiting = await startWaiting('restored', ['-incoming', target]);
      try {
        // It was saved while it stood still.
        const restore = ['restore', 'latest', '--name', 'web1', '--repo', repo, '--to', target, '--running'];
        expect(await cairn([...restore, '--qmp', waiting.qmpPath], options)).toMatchObject({ running: true });
        await waiting.waitForProgress();
        expect(await waiting.guest('lab sum')).toBe(checksum);
      } finally {
        await waiting.kill();
      }
    }, 120_000);

    /** What QEMU itself makes of the file: loaded, and sent as a plain stream. */
    async function loaded(uri: string, capabilities: readonly string[]): Promise<Truth> {
      const waiting = await startWaiting('loaded', ['-incoming', 'defer', '-S']);
      try {
        await waiting.qmp.command('migrate-set-capabilities', switched(capabilities, true));
        await waiting.qmp.command('migrate-incoming', { uri });
        await completed(waiting, uri);
        await waiting.qmp.command('migrate-set-capabilities', switched(capabilities, false));
        await migrateToFile(waiting, file('truth'));
        return readRamBlocks(readFileSync(file('truth')));
      } finally {
        await waiting.destroy();
      }
    }

    function startWaiting(name: string, extraArgs: readonly string[]): Promise<LabMachine> {
      mkdirSync(file(name));
      return LabMachine.start({
        ...{ name: 'imports', qemu, dir: file(name), memoryMib: MEMORY_MIB },
        ...{ extraArgs, noWait: true },
      });
    }
  },
);

function switched(names: readonly string[], state: boolean): Record<string, unknown> {
  return { capabilities: names.map((capability) => ({ capability, state })) };
}

async function completed({ qmp }: LabMachine, uri: string): Promise<void> {
  for (;;) {
    const { status } = (await qmp.command('query-migrate')) as { status?: string };
    if (status === 'completed') return;
    if (status === 'failed') throw new Error(`the migration ${uri} failed`);
    await sleep(10);
  }
}

function xmlOf(name: string): string {
  return `<domain type='qemu'><name>${name}</name><uuid>30c526e0-ee48-4b63-8d6a-f7642f082b92</uuid></domain>`;
}

function writeAtStart(path: string, bytes: Uint8Array): void {
  const opened = openSync(path, 'r+');
  writeSync(opened, bytes, 0, bytes.length, 0);
  closeSync(opened);
}
