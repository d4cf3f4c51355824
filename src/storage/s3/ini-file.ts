/**
 * The files that AWS tools share: `~/.aws/config` and `~/.aws/credentials`. Sections in brackets, a setting a
 * line; settings that are indented belong to the one above them (`s3 =`), and are named here with a dot.
 */

import { readFile } from 'node:fs/promises';

import { CheckpointError, systemErrorCode } from '../../errors.js';

export type IniSections = ReadonlyMap<string, ReadonlyMap<string, string>>;

/** @returns nothing where there is no such file. @throws STORAGE_IO when it cannot be read */
export async function readIniFile(path: string): Promise<IniSections> {
  try {
    return parseIni(await readFile(path, 'utf8'));
  } catch (error) {
    const errno = systemErrorCode(error);
    if (errno === 'ENOENT' || errno === 'ENOTDIR') return new Map();
    throw new CheckpointError('STORAGE_IO', `reading ${path}: ${errno ?? 'failed'}`, { cause: error });
  }
}

/** Lines that are no setting are ignored, as AWS tools do. */
export function parseIni(text: string): IniSections {
  const sections = new Map<string, Map<string, string>>();
  let settings: Map<string, string> | undefined;
  let above = '';
  for (const line of text.split(/\r?\n/)) {
    if (/^\s*([#;]|$)/.test(line)) continue;
    const head = /^\s*\[\s*([^\]]+?)\s*\]/.exec(line);
    if (head !== null) {
      const name = head[1]!.replace(/\s+/g, ' ');
      settings = sections.get(name) ?? new Map<string, string>();
      sections.set(name, settings);
      continue;
    }
    const at = line.indexOf('=');
    if (at < 0 || settings === undefined) continue;
    const name = line.slice(0, at).trim().toLowerCase();
    const isNested = /^\s/.test(line) && above !== '';
    if (!isNested) above = name;
    settings.set(isNested ? `${above}.${name}` : name, line.slice(at + 1).trim());
  }
  return sections;
}
