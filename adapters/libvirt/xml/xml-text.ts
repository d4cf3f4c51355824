/** Text in XML, as libvirt writes it. */

const NAMED: Readonly<Record<string, string>> = { lt: '<', gt: '>', apos: "'", quot: '"', amp: '&' };
const REFERENCE = /&(?:#x(?<hex>[0-9a-fA-F]{1,6})|#(?<decimal>[0-9]{1,7})|(?<name>lt|gt|apos|quot|amp));|&/g;
const MAX_CODE_POINT = 0x10ffff;

export function escaped(text: string): string {
  return (
    text
      .replaceAll('&', '&amp;')
      .replaceAll('<', '&lt;')
      .replaceAll('>', '&gt;')
      .replaceAll("'", '&apos;')
      .replaceAll('"', '&quot;')
      // An XML reader takes these for spaces in an attribute.
      .replaceAll('\t', '&#9;')
      .replaceAll('\n', '&#10;')
      .replaceAll('\r', '&#13;')
  );
}

/**
 * @throws RangeError when it refers to something that XML does not define by itself: there is no document
 * type that could
 */
export function unescaped(text: string): string {
  return text.replace(REFERENCE, (reference, ...match) => {
    const { hex, decimal, name } = match.at(-1) as { hex?: string; decimal?: string; name?: string };
    if (name !== undefined) return NAMED[name]!;
    const code = hex === undefined ? Number(decimal ?? NaN) : Number.parseInt(hex, 16);
    if (code <= MAX_CODE_POINT) return String.fromCodePoint(code);
    throw new RangeError(`${reference} is no reference that XML defines`);
  });
}
