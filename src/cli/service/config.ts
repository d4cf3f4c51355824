/**
 * /etc/cairn/cairn.toml: policies, and the VMs that they are for. A policy's other settings are options of `cairn watch`, by
 * their names without dashes, and are checked as these are. Whatever is wrong is named by its line, or by its key.
 */

import { readFile } from 'node:fs/promises';

import { InvalidArgumentError, type Command, type Option } from 'commander';

import { CheckpointError, describeError } from '../../errors.js';
import type { AlarmTargets } from './alarms.js';
import { parseQuietHours, type QuietHours } from './quiet-hours.js';

export interface Policy {
  readonly name: string;
  readonly repository: string;
  /** Patterns of names, or of addresses: `*` stands for any text. */
  readonly vms: readonly string[];
  readonly everyMs: number;
  /** The newest checkpoint of a VM should never be older. */
  readonly rpoMs: number;
  /** Higher ones come first where several wait for their turn. */
  readonly priority: number;
  readonly quietHours: readonly QuietHours[];
  /** For `cairn watch`, beside the address. */
  readonly args: readonly string[];
}

export interface ServiceConfig {
  /** Checkpoints that are taken at the same time. */
  readonly concurrent: number;
  /** From one look for VMs to the next. */
  readonly lookMs: number;
  /** For node_exporter's folder; empty: no file. */
  readonly metricsFile: string;
  /** Address of the end point for Prometheus; empty: none. */
  readonly listen: string;
  readonly alarms: AlarmTargets;
  /** The first that fits a VM is its own. */
  readonly policies: readonly Policy[];
}

type Value = unknown;
type Table = Readonly<Record<string, Value>>;

const DEFAULT_EVERY_S = 60;
const DEFAULT_CONCURRENT = 2;
const DEFAULT_LOOK_S = 2;
/** A checkpoint may be late by as much before anybody is told. */
const RPO_INTERVALS = 3;
const OWN_KEYS = ['name', 'repository', 'vms', 'every', 'rpo', 'priority', 'quiet-hours'];
/** Options of `cairn watch` that are not a policy's. */
const NOT_FOR_POLICIES = ['repo', 'json', 'name', 'every', 'count', 'help'];

/** @param watch the command whose options policies have. @throws CONFIG_INVALID */
export async function readConfig(path: string, watch: Command): Promise<ServiceConfig> {
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    throw new CheckpointError('CONFIG_INVALID', `cannot read ${path}: ${describeError(cause)}`, {
      hint: 'an example is in /usr/share/doc/cairn/examples/cairn.toml of the package, packaging/cairn.toml of the source',
    });
  });
  const { parse, TomlError } = await import('smol-toml');
  try {
    return parseConfig(parse(text), watch);
  } catch (error) {
    if (error instanceof TomlError)
      throw new CheckpointError(
        'CONFIG_INVALID',
        `${path}, line ${error.line}: ${error.message.split('\n')[0]!}`,
      );
    if (error instanceof WrongKey)
      throw new CheckpointError('CONFIG_INVALID', `${path}: ${error.key} ${error.message}`);
    throw error;
  }
}

class WrongKey extends Error {
  constructor(
    readonly key: string,
    what: string,
  ) {
    super(what);
  }
}

export function parseConfig(whole: Table, watch: Command): ServiceConfig {
  refuseOthers(whole, ['service', 'policy'], '');
  const service = whole.service === undefined ? {} : tableOf(whole.service, 'service');
  refuseOthers(
    service,
    ['concurrent', 'look', 'metrics-file', 'listen', 'alarm-command', 'alarm-url'],
    'service.',
  );
  const policies = whole.policy;
  if (!Array.isArray(policies) || policies.length === 0)
    throw new WrongKey('[[policy]]', 'is missing: without a policy no VM is protected');
  const parsed = policies.map((one, i) => policyOf(tableOf(one, `policy ${i + 1}`), i, watch));
  const names = parsed.map(({ name }) => name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw new WrongKey('policy.name', `"${twice}" is there twice`);
  return {
    concurrent: numberOf(service, 'concurrent', 'service.', DEFAULT_CONCURRENT, 1),
    lookMs: numberOf(service, 'look', 'service.', DEFAULT_LOOK_S, 0.1) * 1000,
    metricsFile: optionalTextOf(service, 'metrics-file', 'service.'),
    listen: service.listen === undefined ? '' : addressOf(service),
    alarms: { command: optionalTextOf(service, 'alarm-command', 'service.'), url: alarmUrlOf(service) },
    policies: parsed,
  };
}

function alarmUrlOf(service: Table): string {
  const text = optionalTextOf(service, 'alarm-url', 'service.');
  const isHttp = URL.canParse(text) && /^https?:$/.test(new URL(text).protocol);
  return text === '' || isHttp ? text : wrong('service.alarm-url', 'has to be an http: or https: URL');
}

/** Outside of this host nobody is let in: the end point knows no users. */
function addressOf(service: Table): string {
  const text = textOf(service, 'listen', 'service.');
  const isOwn = /^(?:127\.\d{1,3}\.\d{1,3}\.\d{1,3}|localhost|\[::1\]):\d{1,5}$/.test(text);
  return isOwn
    ? text
    : wrong('service.listen', 'has to be an address of this host alone, such as 127.0.0.1:9469');
}

function policyOf(table: Table, index: number, watch: Command): Policy {
  const name = textOf(table, 'name', `policy ${index + 1}: `);
  const at = `policy "${name}": `;
  const everyS = numberOf(table, 'every', at, DEFAULT_EVERY_S, 0.1);
  const everyMs = everyS * 1000;
  return {
    name,
    repository: textOf(table, 'repository', at),
    vms: textsOf(table, 'vms', at),
    everyMs,
    rpoMs: numberOf(table, 'rpo', at, everyS * RPO_INTERVALS, 0.1) * 1000,
    priority: numberOf(table, 'priority', at, 0, -Infinity),
    quietHours:
      table['quiet-hours'] === undefined
        ? []
        : textsOf(table, 'quiet-hours', at).map(
            (text) =>
              parseQuietHours(text) ?? wrong(`${at}quiet-hours`, `has "${text}": 01:00-03:30 is needed`),
          ),
    args: watchArgs(table, at, watch, everyS),
  };
}

function watchArgs(table: Table, at: string, watch: Command, everyS: number): readonly string[] {
  const options = watch.options.filter(({ long }) => !NOT_FOR_POLICIES.includes(long?.slice(2) ?? ''));
  const byName = new Map(options.map((option) => [option.long!.slice(2), option]));
  const args = ['--every', String(everyS)];
  for (const [key, value] of Object.entries(table)) {
    if (OWN_KEYS.includes(key)) continue;
    const option = byName.get(key);
    if (option === undefined)
      throw new WrongKey(
        `${at}${key}`,
        `is no setting; there are ${[...OWN_KEYS, ...byName.keys()].join(', ')}`,
      );
    args.push(...argsOf(option, value, `${at}${key}`));
  }
  return args;
}

function argsOf(option: Option, value: Value, key: string): readonly string[] {
  const flag = option.long!;
  if (!option.required && typeof value === 'boolean') return value ? [flag] : [];
  if (!option.required && !option.optional) throw new WrongKey(key, 'has to be true or false');
  if (typeof value !== 'string' && typeof value !== 'number')
    throw new WrongKey(key, 'has to be a number or a text');
  const text = String(value);
  try {
    option.parseArg?.(text, undefined);
  } catch (error) {
    if (error instanceof InvalidArgumentError) throw new WrongKey(key, `is ${text}: ${error.message}`);
    throw error;
  }
  return [`${flag}=${text}`];
}

function refuseOthers(table: Table, known: readonly string[], at: string): void {
  const other = Object.keys(table).find((key) => !known.includes(key));
  if (other !== undefined)
    throw new WrongKey(`${at}${other}`, `is no setting; there are ${known.join(', ')}`);
}

function tableOf(value: Value, key: string): Table {
  if (typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date))
    return value as Table;
  return wrong(key, 'has to be a table');
}

function textOf(table: Table, name: string, at: string): string {
  const value = table[name];
  return typeof value === 'string' && value !== '' ? value : wrong(`${at}${name}`, 'has to be a text');
}

/** Empty when it is not there. */
function optionalTextOf(table: Table, name: string, at: string): string {
  return table[name] === undefined ? '' : textOf(table, name, at);
}

function textsOf(table: Table, name: string, at: string): readonly string[] {
  const value = table[name];
  if (Array.isArray(value) && value.length > 0 && value.every((one) => typeof one === 'string')) return value;
  return wrong(`${at}${name}`, 'has to be a list of texts');
}

function numberOf(table: Table, name: string, at: string, otherwise: number, least: number): number {
  const value = table[name] ?? otherwise;
  if (typeof value === 'number' && Number.isFinite(value) && value >= least) return value;
  return wrong(
    `${at}${name}`,
    least === -Infinity ? 'has to be a number' : `has to be a number of at least ${least}`,
  );
}

function wrong(key: string, what: string): never {
  throw new WrongKey(key, what);
}
