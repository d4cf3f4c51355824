/**
 * Man pages out of the commands themselves: `node packaging/man-pages.mjs FOLDER`, after the build, writes cairn.1 and a
 * page for each command.
 */

import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const BUILT = new URL('../dist/src/cli/', import.meta.url);
const { allCommands, emptyProgram } = await import(new URL('program.js', BUILT).href);
const { packageVersion } = await import(new URL('package-version.js', BUILT).href);

/** Given by who packages it, so that what is made of one source is the same each time. */
function pageDate() {
  const epoch = process.env.SOURCE_DATE_EPOCH;
  return epoch === undefined ? '' : new Date(Number(epoch) * 1000).toISOString().slice(0, 10);
}

/** Text of which roff takes nothing for its own. */
function plain(text) {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll("'", '\\(aq')
    .replace(/^\./gm, '\\&.');
}

function quoted(text) {
  return `"${text.replaceAll('"', '\\(dq')}"`;
}

/** What `addHelpText` has put behind the help. */
function textBehindHelp(command) {
  let text = '';
  command.emit('afterHelp', { error: false, command, write: (part) => (text += part) });
  return text;
}

function heading(name, title, date) {
  return `.TH ${quoted(plain(name.toUpperCase()))} 1 ${quoted(date)} ${quoted(`Cairn ${packageVersion()}`)} ${quoted('User Commands')}
.SH NAME
${plain(name)} \\- ${plain(title)}`;
}

function usage(command, name) {
  const words = command.registeredArguments.map((argument) => {
    const word = `${argument.name()}${argument.variadic ? '...' : ''}`;
    return argument.required ? `\\fI${plain(word)}\\fR` : `[\\fI${plain(word)}\\fR]`;
  });
  return `.SH SYNOPSIS
.nh
.B ${plain(name)}
[\\fIoptions\\fR] ${words.join(' ')}`.trimEnd();
}

function item(term, text) {
  return `.TP\n${term}\n${plain(text)}`;
}

/** @param level macro of its headings, which those of groups stand below */
function options(command, level = '.SH') {
  const help = command.createHelp();
  const groups = new Map();
  for (const option of help.visibleOptions(command)) {
    const group = option.helpGroupHeading ?? '';
    groups.set(group, [...(groups.get(group) ?? []), option]);
  }
  return [...groups].map(([group, members]) => {
    const title =
      group !== '' ? `.SS ${quoted(plain(group.replace(/:$/, '')))}` : level === '.SH' ? '.SH OPTIONS' : '';
    const items = members.map((option) =>
      item(`\\fB${plain(option.flags)}\\fR`, help.optionDescription(option)),
    );
    return [...(title === '' ? [] : [title]), ...items].join('\n');
  });
}

function argumentItems(command) {
  return command.registeredArguments.map((argument) =>
    item(`\\fI${plain(argument.name())}\\fR`, command.createHelp().argumentDescription(argument) || '\u00a0'),
  );
}

function examplesOf(command) {
  const [, examples = ''] = textBehindHelp(command).split('Examples:\n');
  return plain(examples.replace(/^ {2}/gm, '').trimEnd());
}

function sentence(text) {
  return `${plain(text.replace(/^./, (letter) => letter.toUpperCase()))}.`;
}

function pageOf(command, date) {
  const name = `cairn ${command.name()}`;
  const args = argumentItems(command);
  const examples = [command, ...command.commands].map(examplesOf).filter((text) => text !== '');
  return `${heading(`cairn-${command.name()}`, command.description(), date)}
${command.commands.length > 0 ? `.SH SYNOPSIS\n.B ${plain(name)}\n\\fIcommand\\fR [\\fIoptions\\fR]` : usage(command, name)}
.SH DESCRIPTION
${sentence(command.description())}
${args.length === 0 ? '' : `.SH ARGUMENTS\n${args.join('\n')}\n`}${
    command.commands.length === 0
      ? options(command).join('\n')
      : `.SH COMMANDS\n${command.commands.map((one) => partOf(one, name)).join('\n')}`
  }
${examples.length === 0 ? '' : `.SH EXAMPLES\n.nf\n${examples.join('\n')}\n.fi\n`}.SH SEE ALSO
.BR cairn (1)
`;
}

/** A command of a command. */
function partOf(command, parent) {
  return [
    `.SS ${quoted(plain(`${parent} ${command.name()}`))}`,
    sentence(command.description()),
    ...argumentItems(command),
    ...options(command, '.SS'),
  ].join('\n');
}

function overview(commands, date) {
  const program = emptyProgram();
  const [first, ...rest] = textBehindHelp(program).trim().split('\nExit codes: ');
  const codes = rest.join('').replace(/\.$/, '').replaceAll('\n', ' ').split(', ');
  const exits = codes.map((text) => {
    const [, code, what] = /^(\d+) (.*)$/.exec(text);
    return item(`\\fB${code}\\fR`, what);
  });
  const list = commands.map((command) =>
    item(`\\fBcairn\\-${plain(command.name())}\\fR(1)`, command.description()),
  );
  return `${heading('cairn', program.description(), date)}
.SH SYNOPSIS
.B cairn
\\fIcommand\\fR [\\fIoptions\\fR] [\\fIarguments\\fR]
.SH DESCRIPTION
${plain(program.description())}.
${plain(first)}
.SH COMMANDS
${list.join('\n')}
.SH EXIT STATUS
${exits.join('\n')}
.SH ENVIRONMENT
${item('\\fBCAIRN_REPOSITORY\\fR', 'Repository where --repo is not given.')}
${item('\\fBCAIRN_KEY_FILE\\fR, \\fBCAIRN_PASSPHRASE_FILE\\fR, \\fBCAIRN_PASSPHRASE_COMMAND\\fR', 'Key of an encrypted repository where no option gives it.')}
${item('\\fBCAIRN_RUNTIME_DIR\\fR', 'Folder for what belongs to this boot: /run/cairn for root.')}
${item('\\fBCAIRN_STATE_DIR\\fR', 'Folder of the key by which this host knows its checkpoints: /var/lib/cairn for root.')}
.SH SEE ALSO
${commands.map((command) => `.BR cairn\\-${plain(command.name())} (1)`).join(',\n')}
`;
}

const [folder] = process.argv.slice(2);
if (folder === undefined) throw new Error('usage: node packaging/man-pages.mjs FOLDER');
const date = pageDate();
const commands = await allCommands();
await mkdir(folder, { recursive: true });
await writeFile(join(folder, 'cairn.1'), overview(commands, date));
for (const command of commands)
  await writeFile(join(folder, `cairn-${command.name()}.1`), pageOf(command, date));
