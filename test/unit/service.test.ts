import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { watchCommand } from '../../src/cli/commands/watch.js';
import { Alarms, type AlarmTargets } from '../../src/cli/service/alarms.js';
import { readConfig, type ServiceConfig } from '../../src/cli/service/config.js';
import { metricsText, serveMetrics, writeMetrics } from '../../src/cli/service/metrics.js';
import { isQuiet, parseQuietHours } from '../../src/cli/service/quiet-hours.js';
import { Service } from '../../src/cli/service/service.js';
import { statusFields, statusText, type VmFields } from '../../src/cli/service/status-text.js';
import { TurnQueue } from '../../src/cli/service/turn-queue.js';
import { percentile } from '../../src/cli/service/vm-figures.js';
import type { WatcherEvents } from '../../src/cli/service/watcher.js';
import { addressOf, libc } from '../../src/ffi/libc.js';
import { notifyService } from '../../src/ffi/service-notify.js';
import type { RunningVm } from '../../src/hypervisor/hypervisor.js';

const EXAMPLE = fileURLToPath(new URL('../../../packaging/cairn.toml', import.meta.url));
const PROMETHEUS = new URL('../../../packaging/prometheus/', import.meta.url);
const POLICY = '[[policy]]\nname = "all"\nvms = ["*"]\nrepository = "/srv/cairn"\n';

let dir: string;
beforeEach(() => void (dir = mkdtempSync(join(tmpdir(), 'cairn-service-test-'))));
afterEach(() => rmSync(dir, { recursive: true, force: true }));

function configOf(text: string): Promise<ServiceConfig> {
  writeFileSync(join(dir, 'cairn.toml'), text);
  return readConfig(join(dir, 'cairn.toml'), watchCommand());
}

describe('the file with the policies', () => {
  it('is right as it is shipped', async () => {
    const { policies, concurrent } = await readConfig(EXAMPLE, watchCommand());
    expect(concurrent).toBe(2);
    expect(policies.map(({ name }) => name)).toEqual(['important', 'others']);
    expect(policies[0]).toMatchObject({ everyMs: 30_000, rpoMs: 120_000, priority: 10 });
    expect(policies[0]!.args).toEqual([
      ...['--every', '30', '--max-pause=10', '--keep-last=30', '--keep-hourly=24', '--with-disks'],
    ]);
    expect(policies[1]).toMatchObject({
      everyMs: 600_000,
      rpoMs: 1_800_000,
      quietHours: [{ from: 60, to: 180 }],
    });
  });

  it.each([
    ['a line that is no TOML', `${POLICY}every = \n`, /cairn\.toml, line 5: /],
    ['no policy', '[service]\nconcurrent = 1\n', /\[\[policy\]\] is missing/],
    ['an unknown setting', `${POLICY}evry = 5\n`, /policy "all": evry is no setting; there are .*every/],
    ['an unknown table', `${POLICY}[other]\n`, /other is no setting/],
    ['a value of the wrong type', `${POLICY}every = "often"\n`, /policy "all": every has to be a number/],
    [
      'a value that watch does not take',
      `${POLICY}keep-last = 0\n`,
      /policy "all": keep-last is 0: a whole number/,
    ],
    ['a text for a switch', `${POLICY}with-disks = "yes"\n`, /with-disks has to be true or false/],
    [
      'an alarm for no URL',
      `[service]\nalarm-url = "mailto:root"\n${POLICY}`,
      /service\.alarm-url has to be an http/,
    ],
    ['hours that are none', `${POLICY}quiet-hours = ["25:00-26:00"]\n`, /quiet-hours has "25:00-26:00"/],
    ['one name for two', `${POLICY}${POLICY}`, /policy.name "all" is there twice/],
    ['an option of one command alone', `${POLICY}count = 3\n`, /count is no setting/],
  ])('is refused for %s, by line or key', async (_, text, message) => {
    await expect(configOf(text)).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message: expect.stringMatching(message) as unknown,
    });
  });

  it('is refused when it is not there', async () => {
    await expect(readConfig(join(dir, 'none.toml'), watchCommand())).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
    });
  });
});

describe('quiet hours', () => {
  it('may go over midnight', () => {
    const hours = [parseQuietHours('22:30-01:00')!];
    const at = (time: string): boolean => isQuiet(hours, new Date(`2026-12-01T${time}`));
    expect(['22:29', '22:30', '00:59', '01:00'].map(at)).toEqual([false, true, true, false]);
  });
});

describe('turns', () => {
  it('are given to so many at a time, the most urgent first, and to none in its quiet hours', () => {
    const turns = new TurnQueue(1);
    const given: string[] = [];
    let isNight = true;
    const want = (key: string, priority: number, mayBegin = (): boolean => true): void =>
      turns.want({ key, priority, mayBegin, give: () => given.push(key) });
    want('a', 0);
    want('b', 0);
    want('night', 9, () => !isNight);
    want('c', 5);
    expect(given).toEqual(['a']);
    turns.done('a');
    turns.done('c');
    expect(given).toEqual(['a', 'c', 'b']);
    turns.done('b');
    expect(turns.busy).toBe(0);
    isNight = false;
    turns.next();
    expect(given).toEqual(['a', 'c', 'b', 'night']);
  });

  it('are not given to who has gone', () => {
    const turns = new TurnQueue(1);
    const given: string[] = [];
    for (const key of ['a', 'b'])
      turns.want({ key, priority: 0, mayBegin: () => true, give: () => given.push(key) });
    turns.done('b');
    turns.done('a');
    expect(given).toEqual(['a']);
  });
});

/** A service with watchers that do what the test says. */
class Stage {
  running: RunningVm[] = [];
  readonly watchers: {
    readonly args: readonly string[];
    readonly events: WatcherEvents;
    turns: number;
    isEnded: boolean;
  }[] = [];
  readonly service: Service;

  constructor(config: ServiceConfig, before: ConstructorParameters<typeof Service>[1] = []) {
    this.service = new Service(config, before, {
      look: () => Promise.resolve(this.running),
      say: () => undefined,
      startWatcher: (args, events) => {
        const watcher = { args, events, turns: 0, isEnded: false };
        this.watchers.push(watcher);
        return {
          ended: Promise.resolve(),
          giveTurn: () => {
            watcher.turns++;
          },
          end: () => void (watcher.isEnded = true),
        };
      },
    });
  }
}

const WEB: RunningVm = { address: 'qmp:/run/web1.qmp', name: 'web1', instance: 'kvm:10' };
const CHECKPOINT = {
  ...{ message_type: 'summary', checkpoint_id: '0123456789abcdef', kind: 'base', tracker: 'pagemap-scan' },
  ...{ pause_ms: 4, stored_bytes: 1000 },
};

describe('the service', () => {
  it('watches each VM once, by the first policy that fits its name or an address', async () => {
    const stage = new Stage(
      await configOf(
        `[[policy]]\nname = "db"\nvms = ["db*", "libvirt:*"]\nrepository = "/srv/db"\n[[policy]]\nname = "web"\nvms = ["web*"]\nrepository = "/srv/web"\nevery = 5\n`,
      ),
    );
    stage.running = [
      { address: 'qmp:/run/harness', name: 'web1', instance: 'kvm:10' },
      WEB,
      { address: 'libvirt:web2', name: 'web2', instance: 'libvirt:web2' },
      { address: 'qmp:/run/other', name: 'other', instance: 'kvm:12' },
    ];
    await stage.service.look();
    await stage.service.look();
    expect(stage.watchers.map(({ args }) => args)).toEqual([
      ['qmp:/run/harness', '--repo', '/srv/web', '--every', '5'],
      ['libvirt:web2', '--repo', '/srv/db', '--every', '60'],
    ]);
  });

  it('keeps what watchers say, and has it again after it was started again', async () => {
    const config = await configOf(POLICY);
    const stage = new Stage(config);
    stage.running = [WEB];
    await stage.service.look();
    const { events } = stage.watchers[0]!;
    events.onMessage({ message_type: 'error', code: 'VM_BUSY', message: 'held', hint: 'another socket' });
    expect(stage.service.status.vms[0]).toMatchObject({
      failures: 1,
      problem: { code: 'VM_BUSY', hint: 'another socket' },
    });
    events.onMessage(CHECKPOINT);
    const known = { checkpoints: 1, storedToday: 1000, pausesMs: [4], problem: undefined, lastKind: 'base' };
    expect(stage.service.status.vms[0]).toMatchObject(known);
    const next = new Stage(config, stage.service.status.vms);
    next.running = [WEB];
    await next.service.look();
    expect(next.service.status.vms[0]).toMatchObject({ ...known, state: 'watched' });
  });

  it('starts a watcher that has ended again, later and later, and knows a VM that is gone', async () => {
    const stage = new Stage(await configOf(POLICY));
    stage.running = [WEB];
    await stage.service.look();
    stage.watchers[0]!.events.onEnd();
    await stage.service.look();
    expect(stage.watchers).toHaveLength(1);
    expect(stage.service.status.vms[0]!.state).toBe('waiting');
    stage.running = [];
    await stage.service.look();
    expect(stage.service.status.vms[0]!.state).toBe('gone');
    stage.running = [{ ...WEB, instance: 'kvm:11' }];
    await stage.service.look();
    expect(stage.watchers).toHaveLength(2);
    expect(stage.service.status.vms[0]!.state).toBe('watched');
  });

  it('ends only those watchers for which other policies have other settings', async () => {
    const two = (every: number): string =>
      `[[policy]]\nname = "db"\nvms = ["db"]\nrepository = "/srv/db"\nevery = ${every}\n${POLICY}`;
    const stage = new Stage(await configOf(two(5)));
    stage.running = [WEB, { address: 'qmp:/run/db', name: 'db', instance: 'kvm:12' }];
    await stage.service.look();
    stage.service.reload(await configOf(two(6)));
    expect(stage.watchers.map(({ isEnded }) => isEnded)).toEqual([false, true]);
    await stage.service.look();
    expect(stage.watchers.at(-1)!.args).toContain('6');
    await stage.service.end();
    expect(stage.watchers.every(({ isEnded }) => isEnded)).toBe(true);
  });
});

describe('the status', () => {
  it('says who is late, and what is wrong with what helps', async () => {
    const stage = new Stage(await configOf(`${POLICY}rpo = 30\n`));
    stage.running = [WEB, { address: 'qmp:/run/db', name: 'db', instance: 'kvm:12' }];
    await stage.service.look();
    stage.watchers[0]!.events.onMessage(CHECKPOINT);
    stage.watchers[1]!.events.onMessage({
      message_type: 'error',
      code: 'VM_BUSY',
      message: 'held',
      hint: 'another socket',
    });
    const status = { ...stage.service.status, isRunning: true };
    const now = statusFields(status, Date.now());
    expect(now.isWell).toBe(false);
    expect(now.vms[0]).toMatchObject({
      isLate: false,
      pauseP50Ms: 4,
      pauseP99Ms: 4,
      storedToday: 1000,
      problem: null,
    });
    const later = statusText(statusFields(status, Date.now() + 31_000));
    expect(later).toMatch(/web1 +all +LATE +01234567 /);
    expect(later).toContain('qmp:/run/db: held [VM_BUSY]; another socket');
    expect(statusText(statusFields({ ...status, isRunning: false }, Date.now()))).toMatch(
      /^the service does not run/,
    );
  });

  it('takes the value that so many lie below', () => {
    const values = Array.from({ length: 100 }, (_, i) => 100 - i);
    expect([percentile(values, 0.5), percentile(values, 0.99), percentile([], 0.5)]).toEqual([
      51,
      100,
      undefined,
    ]);
  });
});

describe('alarms', () => {
  const problem = { code: 'VM_BUSY', message: 'held', hint: 'another socket', atMs: 1 };
  const vm = (fields: Partial<VmFields>): VmFields => ({
    ...{ address: WEB.address, name: 'web1', policy: 'all', state: 'watched', lastCheckpointId: '01234567' },
    ...{ hasCheckpoint: true, ageMs: 31_000, rpoMs: 30_000, isLate: false, pauseP50Ms: 4, pauseP99Ms: 4 },
    ...{ checkpoints: 1, failures: 0, storedToday: 1, storedTotal: 1, problem: null },
    ...fields,
  });

  async function until(isSo: () => boolean): Promise<void> {
    while (!isSo()) await sleep(5);
  }

  function toFile(): { readonly targets: AlarmTargets; readonly told: () => readonly string[] } {
    const path = join(dir, 'told');
    writeFileSync(path, '');
    const line = '"$CAIRN_CONDITION $CAIRN_VM_NAME $CAIRN_POLICY $CAIRN_AGE_S $CAIRN_CODE $CAIRN_HINT"';
    return {
      targets: { command: `echo ${line} >>'${path}'`, url: '' },
      told: () => readFileSync(path, 'utf8').split('\n').slice(0, -1),
    };
  }

  it('are given once for each change, by a command', async () => {
    const { targets, told } = toFile();
    const alarms = new Alarms((text) => expect(text).toBe(''));
    /** Looks as often as the service does, until so much was told. */
    const look = (fields: Partial<VmFields>, count: number): Promise<void> =>
      until(() => {
        alarms.look([vm(fields)], targets);
        return told().length === count;
      });
    await look({}, 0);
    await look({ problem }, 1);
    await look({ problem, state: 'gone' }, 1);
    await look({ isLate: true }, 2);
    await look({ isLate: true }, 2);
    await look({}, 3);
    expect(told()).toEqual([
      'failing web1 all 31 VM_BUSY another socket',
      'late web1 all 31  ',
      'ok web1 all 31  ',
    ]);
  });

  it('are given by a request, and again when it was not taken', async () => {
    const bodies: unknown[] = [];
    const server = createServer((request, response) => {
      let text = '';
      request.setEncoding('utf8').on('data', (part: string) => (text += part));
      request.on('end', () => {
        bodies.push(JSON.parse(text));
        response.writeHead(bodies.length === 1 ? 503 : 204).end();
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/cairn`;
    const warnings: string[] = [];
    const alarms = new Alarms((text) => warnings.push(text));
    alarms.look([vm({ problem })], { command: '', url }, 0);
    await until(() => warnings.length === 1);
    expect(warnings[0]).toContain('it answered 503');
    alarms.look([vm({ problem })], { command: '', url }, 29_000);
    await sleep(50);
    expect(bodies.length).toBe(1);
    alarms.look([vm({ problem })], { command: '', url }, 31_000);
    await until(() => bodies.length === 2);
    expect(bodies[1]).toMatchObject({ condition: 'failing', address: WEB.address, name: 'web1', problem });
    server.close();
    expect(warnings.length).toBe(1);
  });
});

describe('the figures for Prometheus', () => {
  async function fields(): Promise<ReturnType<typeof statusFields>> {
    const stage = new Stage(await configOf(POLICY));
    stage.running = [WEB, { address: 'qmp:/run/db', name: 'd"b', instance: 'kvm:12' }];
    await stage.service.look();
    stage.watchers[0]!.events.onMessage(CHECKPOINT);
    return statusFields({ ...stage.service.status, isRunning: true }, Date.now());
  }

  it('are there for each VM, with names as labels', async () => {
    const text = await metricsText(await fields());
    const of = (name: string, vm = 'web1', address = WEB.address): string =>
      `\n${name}{vm="${vm}",address="${address}",policy="all"} `;
    expect(text).toContain(`${of('cairn_vm_checkpoints_total')}1\n`);
    expect(text).toContain(`${of('cairn_vm_stored_bytes_total')}1000\n`);
    expect(text).toContain(`${of('cairn_vm_pause_p99_seconds')}0.004\n`);
    expect(text).toContain(`${of('cairn_vm_watched', 'd\\"b', 'qmp:/run/db')}1\n`);
    expect(text).not.toContain(of('cairn_vm_pause_p99_seconds', 'd\\"b', 'qmp:/run/db'));
  });

  it('are what the alert rules and the dashboard ask for', async () => {
    const text = await metricsText({ isRunning: true, isWell: true, problem: '', vms: [] });
    const known = new Set([...text.matchAll(/^# TYPE (\S+) /gm)].map(([, name]) => name));
    for (const file of ['cairn.rules.yml', 'cairn-dashboard.json']) {
      const asked = readFileSync(new URL(file, PROMETHEUS), 'utf8').match(/\bcairn_\w+/g) ?? [];
      expect(asked.length).toBeGreaterThan(5);
      expect(asked.filter((name) => !known.has(name))).toEqual([]);
    }
  });

  it('replace a file whole, which others may read', async () => {
    const path = join(dir, 'cairn.prom');
    await writeMetrics(path, 'old\n');
    await writeMetrics(path, 'new\n');
    expect(readFileSync(path, 'utf8')).toBe('new\n');
    expect(statSync(path).mode & 0o777).toBe(0o644);
    expect(readdirSync(dir).filter((name) => name.endsWith('.tmp'))).toEqual([]);
    await expect(writeMetrics(join(dir, 'none/cairn.prom'), '')).rejects.toThrow('ENOENT');
  });

  it('are served at one path, on this host alone', async () => {
    const server = await serveMetrics('127.0.0.1:0', () => Promise.resolve('some 1\n'));
    const { port } = server.address() as AddressInfo;
    const get = (path: string): Promise<Response> => fetch(`http://127.0.0.1:${port}${path}`);
    expect(await (await get('/metrics')).text()).toBe('some 1\n');
    expect((await get('/')).status).toBe(404);
    server.close();
    server.closeAllConnections();
    for (const listen of ['0.0.0.0:9469', 'example.org:80', '9469'])
      await expect(configOf(`[service]\nlisten = "${listen}"\n${POLICY}`)).rejects.toThrow(
        'service.listen has to be',
      );
  });
});

describe('what systemd is told', () => {
  it('comes in a datagram at the socket that it names', () => {
    const path = join(dir, 'notify');
    // socket(2), bind(2), recvfrom(2) of x86-64.
    const descriptor = libc().syscall(41, 1, 2).value;
    const address = Buffer.concat([Buffer.from([1, 0]), Buffer.from(path)]);
    expect(libc().syscall(49, descriptor, addressOf(address), address.length).value).toBe(0);
    expect(notifyService('READY=1\nSTATUS=2 VMs', path)).toBe(true);
    const heard = Buffer.alloc(100);
    const length = libc().syscall(45, descriptor, addressOf(heard), heard.length).value;
    expect(heard.toString('utf8', 0, length)).toBe('READY=1\nSTATUS=2 VMs');
    expect(notifyService('READY=1', join(dir, 'nobody'))).toBe(false);
    expect(notifyService('READY=1', '')).toBe(false);
  });
});

describe('the unit of the service', () => {
  it('says why it leaves out what would confine it further', () => {
    const unit = readFileSync(new URL('../../../packaging/systemd/cairn.service', import.meta.url), 'utf8');
    expect(unit).toContain('Type=notify');
    for (const setting of [
      'CapabilityBoundingSet',
      'NoNewPrivileges',
      'MemoryDenyWriteExecute',
      'PrivateDevices',
    ])
      expect(unit).toMatch(new RegExp(`^# +${setting} +\\w`, 'm'));
  });
});
