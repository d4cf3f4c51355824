/** Repositories in a real object store: the RADOS gateway of Ceph 16.2 (Debian 12), beside a guest. That of the guest is encrypted. */

import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { Repository, openStorage } from '../../src/index.js';
import type { StorageBackend } from '../../src/storage/backend.js';
import { openS3, type OpenedS3 } from '../../src/storage/s3/open-s3.js';
import { probeStore } from '../../src/storage/s3/probe.js';
import { storageContract } from '../contract/storage.js';
import { seeded } from '../support/seeded.js';
import { UnreliableProxy } from '../support/unreliable-proxy.js';
import { LabMachine } from './machine.js';
import { CairnProcess, cairn, isSummary, runCairn, type CliOptions } from './support/cairn-cli.js';
import { CephCluster, whyNoCeph, type Gateway } from './support/ceph-cluster.js';
import { gentleLoad } from './support/guest-loads.js';
import { scratchDir } from './support/lab-files.js';
import { checkpointAgainstTruth, differingFromStored } from './support/oracle.js';
import { processTruth } from './support/process-truth.js';

const BUCKET = 'cairn-lab';
const KILLS = 4;

const reason = whyNoCeph();
if (reason !== '') process.stderr.write(`test/lab/s3.test.ts is skipped: ${reason}\n`);

(reason === '' ? describe : describe.skip)('a repository in an object store', () => {
  let cluster: CephCluster;
  let gateway: Gateway;
  let proxy: UnreliableProxy;
  const opened: OpenedS3[] = [];
  const envBefore = { ...process.env };

  const addressOf = (prefix: string, endpoint = gateway.endpoint): string =>
    `s3://${BUCKET}/${prefix}?endpoint=${endpoint}&give-up=60`;
  const open = async (prefix: string): Promise<OpenedS3> => {
    const s3 = await openS3(addressOf(prefix));
    opened.push(s3);
    return s3;
  };

  beforeAll(async () => {
    cluster = await CephCluster.start(join(scratchDir('s3'), 'ceph'));
    gateway = await cluster.startGateway();
    proxy = await UnreliableProxy.start(gateway.endpoint, 21);
    process.env.AWS_ACCESS_KEY_ID = gateway.accessKey;
    process.env.AWS_SECRET_ACCESS_KEY = gateway.secretKey;
    const { client } = await open('');
    const made = await client.send({ method: 'PUT', path: '', signal: undefined });
    expect(made.status).toBe(200);
  });
  afterAll(async () => {
    for (const { backend } of opened) await backend.close();
    await proxy.stop();
    await cluster.destroy();
    process.env = envBefore;
  });

  describe('by the contract of all backends', () => {
    const ready: StorageBackend[] = [];
    beforeAll(async () => {
      for (let n = 0; n < 30; n++) ready.push((await open(`contract/${n}`)).backend);
    });
    storageContract('Ceph gateway', () => ready.pop()!);

    it('does what the probe asks for', async () => {
      const { client } = await open('probe');
      expect(await probeStore(client, 'probe', 's3:')).toMatchObject({ createsOnce: true, problems: [] });
    });

    it('refuses keys that are none of its own, and a bucket that is not there', async () => {
      const wrong = { ...process.env, AWS_SECRET_ACCESS_KEY: 'another' };
      const { backend } = await openS3(addressOf('x'), wrong);
      await expect(backend.list('')).rejects.toMatchObject({
        code: 'STORAGE_IO',
        message: expect.stringContaining('SignatureDoesNotMatch'),
      });
      const other = await openS3(`s3://no-such-bucket/x?endpoint=${gateway.endpoint}`);
      await expect(other.backend.load('config')).rejects.toMatchObject({
        hint: expect.stringContaining('make the bucket'),
      });
    });
  });

  describe('of a running guest', () => {
    let machine: LabMachine;
    let options: CliOptions & { readonly repo: string };
    let repo: string;
    let id = '';
    let truth: ReadonlyMap<string, Buffer>;

    beforeAll(async () => {
      machine = await LabMachine.start({ name: 's3', memoryMib: 96 });
      repo = addressOf('guest');
      options = { dir: machine.dir, repo };
      const key = join(machine.dir, 'key');
      writeFileSync(key, randomBytes(32));
      process.env.CAIRN_KEY_FILE = key;
    });
    afterAll(() => machine.destroy());

    const verify = (): Promise<unknown> => cairn(['verify', '--repo', repo], options);

    it('is made where the store is fit for it, as doctor says', async () => {
      expect(await cairn(['doctor', '--repo', repo], options)).toMatchObject({
        creates_once: true,
        problems: [],
      });
      const inTheOpen = await runCairn(['init', '--repo', repo], { ...options, env: { CAIRN_KEY_FILE: '' } });
      expect(inTheOpen).toMatchObject({ exitCode: 12 });
      expect(await cairn(['init', '--repo', repo], options)).toMatchObject({ encrypted: true });
      const again = await runCairn(['init', '--repo', repo], options);
      expect(again.messages.at(-1)).toMatchObject({ code: 'REPO_EXISTS' });
    });

    it('holds every byte of its memory, base and increments', async () => {
      await machine.guest(gentleLoad(8));
      const truthOf = async (): Promise<Map<string, Buffer>> => {
        const taken = await processTruth(machine);
        truth = taken;
        return taken;
      };
      for (const kind of ['base', 'incremental']) {
        await machine.waitForProgress();
        const { summary, differing } = await checkpointAgainstTruth(machine, [], options, truthOf);
        expect(summary).toMatchObject({ kind });
        expect(differing).toEqual([]);
        id = String(summary.checkpoint_id);
      }
      expect(await verify()).toMatchObject({ problems: [] });
      const { backend } = await open('guest');
      const names = (await backend.list('')).map(({ key }) => key);
      expect(names.filter((name) => name.startsWith('vms/s3/'))).toEqual([]);
      expect(names.filter((name) => name.includes('/packs/'))).toHaveLength(2);
    });

    it('has one writer a chain, and whoever comes second ends with 11', async () => {
      const every = ['--every', '1'];
      const repository = await Repository.open(await openStorage(repo));
      const { identity } = await repository.find('latest');
      const other = await repository.openChainWriter('s3', identity);
      const second = await runCairn(['watch', machine.address, '--repo', repo, ...every], options);
      expect(second).toMatchObject({ exitCode: 11 });
      expect(second.messages.at(-1)).toMatchObject({ code: 'REPO_LOCKED' });
      await other.close();
      await repository.close();

      const watch = new CairnProcess(['watch', machine.address, '--repo', repo, ...every], options);
      await watch.message(isSummary);
      expect(await runCairn(['prune', '--repo', repo], options)).toMatchObject({ exitCode: 11 });
      await watch.message(isSummary, 1);
      watch.child.kill('SIGTERM');
      expect((await watch.ended).exitCode).toBe(0);
    });

    it('is whole after connections that break at any byte', async () => {
      const unreliable = addressOf('guest', proxy.endpoint);
      proxy.cutOneIn = 4;
      const { summary, differing } = await checkpointAgainstTruth(
        machine,
        [],
        { ...options, repo: unreliable },
        (one) => processTruth(one),
      );
      proxy.cutOneIn = 0;
      expect(differing).toEqual([]);
      expect(summary).toMatchObject({ kind: 'incremental' });
      expect(await verify()).toMatchObject({ problems: [] });
    });

    it('is whole after the gateway was killed in the middle of a checkpoint', async () => {
      const process = new CairnProcess(['checkpoint', machine.address, '--repo', repo], options);
      await process.message(({ message_type }) => message_type === 'status' || message_type === 'summary');
      await cluster.killGateway();
      await machine.waitForProgress();
      await cluster.restartGateway(gateway);
      expect((await process.ended).exitCode).toBe(0);
      expect(await verify()).toMatchObject({ problems: [] });
    });

    it(`is whole after Cairn was killed ${KILLS} times at some point`, async () => {
      const random = seeded(7);
      for (let n = 0; n < KILLS; n++) {
        const process = new CairnProcess(['checkpoint', machine.address, '--repo', repo], options);
        await sleep(400 + random(1500));
        process.child.kill('SIGKILL');
        await process.ended;
        await machine.waitForProgress();
      }
      const { differing } = await checkpointAgainstTruth(machine, [], options, (one) => processTruth(one));
      expect(differing).toEqual([]);
      expect(await verify()).toMatchObject({ problems: [] });
    });

    it('forgets, and what is kept is whole', async () => {
      expect(await differingFromStored(truth, repo, id)).toEqual([]);
      await cairn(['forget', '--keep-last', '2', '--repo', repo], options);
      const repository = await Repository.open(await openStorage(repo));
      expect((await repository.checkpoints()).manifests).toHaveLength(2);
      await repository.close();
      expect(await verify()).toMatchObject({ problems: [] });
    });

    it('gives the guest back', async () => {
      const { summary, differing } = await checkpointAgainstTruth(machine, [], options, async (one) => {
        const taken = await processTruth(one);
        truth = taken;
        return taken;
      });
      expect(differing).toEqual([]);
      await machine.kill();
      const restore = ['restore', String(summary.checkpoint_id), '--repo', repo, '--paused'];
      const { pid } = await cairn(restore, options);
      const again = await LabMachine.adopt('s3', machine.dir, Number(pid));
      try {
        const back = await processTruth(again);
        for (const [name, contents] of truth) expect(back.get(name)!.equals(contents)).toBe(true);
        await again.qmp.command('cont');
        await again.waitForProgress();
      } finally {
        await again.kill();
      }
    });
  });
});
