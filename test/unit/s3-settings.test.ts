/** How an object store is addressed, and where its keys come from. */

import { createServer } from 'node:http';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, describe, expect, it } from '@jest/globals';

import { parseS3Address } from '../../src/storage/s3/address.js';
import { parseIni } from '../../src/storage/s3/ini-file.js';
import { Pace } from '../../src/storage/s3/pace.js';
import { findSettings } from '../../src/storage/s3/settings.js';
import { EMPTY_SHA256, signedHeaders } from '../../src/storage/s3/signature.js';

const home = mkdtempSync(join(tmpdir(), 'cairn-s3-settings-'));
afterAll(() => rmSync(home, { recursive: true }));

const settingsOf = (address: string, env: Readonly<Record<string, string>> = {}) =>
  findSettings(parseS3Address(address), { HOME: '/nonexistent', ...env });

describe('a signature', () => {
  // Amazon S3 API Reference, "Authenticating Requests: Using the Authorization Header", examples.
  const example = {
    accessKeyId: 'AKIAIOSFODNN7EXAMPLE',
    secretAccessKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
  };
  const request = {
    ...{ method: 'GET', host: 'examplebucket.s3.amazonaws.com', bodySha256: EMPTY_SHA256 },
    ...{ path: '/', query: {}, headers: {} },
  };

  it.each([
    [
      'an object',
      { ...request, path: '/test.txt', headers: { range: 'bytes=0-9' } },
      'f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41',
    ],
    [
      'a list',
      { ...request, query: { prefix: 'J', 'max-keys': '2' } },
      '34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7',
    ],
  ])('of a request for %s is that of the published example', (_, one, signature) => {
    const headers = signedHeaders(one, example, 'us-east-1', new Date('2013-05-24T00:00:00Z'));
    expect(headers.authorization).toMatch(new RegExp(`Signature=${signature}$`));
  });
});

describe('the address of an object store', () => {
  it.each([
    ['s3://bucket', 'bucket', ''],
    ['s3://bucket/', 'bucket', ''],
    ['s3://bucket/a/b/?region=here', 'bucket', 'a/b'],
  ])('%s', (address, bucket, prefix) => {
    expect(parseS3Address(address)).toMatchObject({ bucket, prefix });
  });

  it.each(['s3:bucket', 's3://', 's3://B', 's3://bucket/a b', 's3://bucket/../x', 's3://bucket?color=red'])(
    'refuses %s with all options',
    (address) => {
      expect(() => parseS3Address(address)).toThrow(
        expect.objectContaining({ code: 'STORAGE_ADDRESS', hint: expect.stringContaining('endpoint') }),
      );
    },
  );

  it('goes to Amazon by the name of the bucket, and to others by the path', async () => {
    expect(await settingsOf('s3://bucket/x?region=eu-north-1')).toMatchObject({
      endpoint: new URL('https://s3.eu-north-1.amazonaws.com'),
      isPathStyle: false,
    });
    expect((await settingsOf('s3://my.bucket/x')).isPathStyle).toBe(true);
    const env = {
      AWS_ENDPOINT_URL: 'http://other',
      AWS_ENDPOINT_URL_S3: 'http://store:7480',
      AWS_REGION: 'r',
    };
    expect(await settingsOf('s3://bucket/x', env)).toMatchObject({
      endpoint: new URL('http://store:7480'),
      region: 'r',
      isPathStyle: true,
    });
    expect((await settingsOf('s3://bucket/x?path-style=no', env)).isPathStyle).toBe(false);
  });

  it.each(['endpoint=ftp://x', 'endpoint=http://x/path', 'path-style=perhaps', 'limit-upload=much'])(
    'refuses the option %s',
    async (option) => {
      await expect(settingsOf(`s3://bucket?${option}`)).rejects.toMatchObject({ code: 'STORAGE_ADDRESS' });
    },
  );
});

describe('the shared files', () => {
  it('have sections, settings, and settings below settings', () => {
    const text =
      '# of mine\n[default]\nregion = a\ns3 =\n  addressing_style = path\n\n[ profile  x ]\nA=b = c\n';
    const sections = parseIni(text);
    expect(Object.fromEntries(sections.get('default')!)).toEqual({
      ...{ region: 'a', s3: '', 's3.addressing_style': 'path' },
    });
    expect(Object.fromEntries(sections.get('profile x')!)).toEqual({ a: 'b = c' });
  });

  const config = join(home, 'config');
  const credentials = join(home, 'credentials');
  const env = { AWS_CONFIG_FILE: config, AWS_SHARED_CREDENTIALS_FILE: credentials };

  it('give keys, region and endpoint by profile, before which keys in the environment go', async () => {
    writeFileSync(
      credentials,
      '[default]\naws_access_key_id=D\naws_secret_access_key=d\n[x]\naws_access_key_id=X\naws_secret_access_key=x\n',
    );
    writeFileSync(config, '[profile x]\nregion=far\nendpoint_url=https://x.example\n');
    const named = await settingsOf('s3://bucket?profile=x', {
      ...env,
      AWS_ACCESS_KEY_ID: 'E',
      AWS_SECRET_ACCESS_KEY: 'e',
    });
    expect(named).toMatchObject({ region: 'far', endpoint: new URL('https://x.example') });
    expect(await named.credentials.get()).toMatchObject({ accessKeyId: 'X' });
    expect(await (await settingsOf('s3://bucket', env)).credentials.get()).toMatchObject({
      accessKeyId: 'D',
    });
    const keys = { AWS_ACCESS_KEY_ID: 'E', AWS_SECRET_ACCESS_KEY: 'e', AWS_SESSION_TOKEN: 't' };
    expect(await (await settingsOf('s3://bucket', { ...env, ...keys })).credentials.get()).toEqual({
      ...{ accessKeyId: 'E', secretAccessKey: 'e', sessionToken: 't' },
    });
  });

  it('name a program that gives keys', async () => {
    const answer =
      '{"Version":1,"AccessKeyId":"P","SecretAccessKey":"p","Expiration":"2999-01-01T00:00:00Z"}';
    writeFileSync(
      config,
      `[profile p]\ncredential_process = printf '%s' '${answer}'\n[profile q]\ncredential_process = false\n`,
    );
    expect(await (await settingsOf('s3://bucket?profile=p', env)).credentials.get()).toMatchObject({
      accessKeyId: 'P',
    });
    const { credentials: none } = await settingsOf('s3://bucket?profile=q', env);
    await expect(none.get()).rejects.toMatchObject({ code: 'STORAGE_IO' });
  });
});

describe('keys of a machine in a cloud', () => {
  it('come from its metadata, with a token, and are fetched anew before they expire', async () => {
    let given = 0;
    const server = createServer((request, response) => {
      if (request.method === 'PUT') response.end('token');
      else if (request.headers['x-aws-ec2-metadata-token'] !== 'token') response.writeHead(401).end();
      else if (request.url!.endsWith('/')) response.end('role\n');
      else {
        const expires = new Date(Date.now() + (given++ === 0 ? 1000 : 3_600_000)).toISOString();
        const keys = { AccessKeyId: `I${given}`, SecretAccessKey: 's', Token: 't', Expiration: expires };
        response.end(JSON.stringify(keys));
      }
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    try {
      const base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const { credentials } = await settingsOf('s3://bucket', { AWS_EC2_METADATA_SERVICE_ENDPOINT: base });
      const ids = [];
      for (let n = 0; n < 3; n++) ids.push((await credentials.get()).accessKeyId);
      expect(ids).toEqual(['I2', 'I2', 'I2']);
    } finally {
      server.close();
    }
  });

  it('may be nowhere, which is said with a remedy', async () => {
    const { credentials } = await settingsOf('s3://bucket', { AWS_EC2_METADATA_DISABLED: 'true' });
    await expect(credentials.get()).rejects.toMatchObject({
      code: 'STORAGE_IO',
      hint: expect.stringContaining('AWS_ACCESS_KEY_ID'),
    });
  });
});

describe('a limited flow', () => {
  it('takes as long as its bytes do, and none without a limit', async () => {
    expect(new Pace(1000).leastMs(500)).toBe(500);
    expect(new Pace(undefined).leastMs(1 << 30)).toBe(0);
    await expect(new Pace(1).wait(1000, AbortSignal.abort())).rejects.toMatchObject({ name: 'AbortError' });
  });
});
