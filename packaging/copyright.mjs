/**
 * The file copyright of the Debian package, on stdout: `node packaging/copyright.mjs NODE_MODULES LICENCE_OF_NODE`. Each
 * package says itself what its licence is; equal texts come once.
 */

import { readdir, readFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';

const [modules, nodeLicence] = process.argv.slice(2);

async function packages() {
  const files = await readdir(modules, { recursive: true });
  const own = files.filter((file) => /(?:^|node_modules\/)(?:@[^/]+\/)?[^/@]+\/package\.json$/.test(file));
  return own.map(dirname).sort();
}

function paragraph(text) {
  return text
    .trim()
    .split('\n')
    .map((line) => (line.trim() === '' ? ' .' : ` ${line.trimEnd().replaceAll('\t', '    ')}`))
    .join('\n');
}

async function licenceText(folder) {
  const name = (await readdir(folder)).find((file) => /^licen[cs]e/i.test(file));
  return name === undefined ? undefined : readFile(join(folder, name), 'utf8');
}

const stanzas = [];
const texts = new Map();
/** The name of the stanza that has this text. */
function named(short, text) {
  const known = texts.get(text);
  if (known !== undefined) return known;
  const same = [...texts.values()].filter((name) => name === short || name.startsWith(`${short}~`)).length;
  const name = same === 0 ? short : `${short}~${same + 1}`;
  texts.set(text, name);
  return name;
}

for (const folder of await packages()) {
  const at = join(modules, folder);
  const { license, author } = JSON.parse(await readFile(join(at, 'package.json'), 'utf8'));
  const text = (await licenceText(at)) ?? `The package says of its licence: ${license}`;
  const owner =
    /^.*copyright.*\d{4}.*$/im.exec(text)?.[0].replace(/^.*?copyright\s*(?:\(c\)|©)?\s*/i, '') ??
    (typeof author === 'string' ? author : author?.name) ??
    'its authors';
  stanzas.push(
    `Files: usr/lib/cairn/node_modules/${relative('', folder)}/*\nCopyright: ${owner.trim()}\nLicense: ${named(license.replace(/[()\s]+/g, '-'), text)}`,
  );
}
const nodeText = await readFile(nodeLicence, 'utf8');
stanzas.push(
  `Files: usr/lib/cairn/bin/node\nCopyright: Node.js contributors, and those that the text names\nLicense: ${named('Node.js', nodeText)}`,
);
process.stdout.write(`Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: cairn

Files: *
Copyright: The Cairn developers
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.

${stanzas.join('\n\n')}

${[...texts].map(([text, name]) => `License: ${name}\n${paragraph(text)}`).join('\n\n')}
`);
