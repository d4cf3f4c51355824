/**
 * XML as a tree whose elements know where they stand in the text, so that an edit changes the bytes of one
 * element and leaves everything else as its author wrote it: quotes, white space, comments, elements that
 * nobody here knows.
 *
 * fast-xml-parser reads; it expands no entity (values stay as they are written until `textOf` and `attribute`
 * decode them), and there is no document type, because the text must begin with its root element. The XML may
 * come from a repository that others write to, so its size and depth are bounded, and what XML 1.0 does not
 * allow is refused before anybody acts on it.
 */

import { XMLParser, XMLValidator } from 'fast-xml-parser';

import { CheckpointError, describeError } from '../../../src/errors.js';
import { escaped, unescaped } from './xml-text.js';

export interface XmlElement {
  readonly name: string;
  /** Decoded. @throws VM_UNSUPPORTED for a reference that XML does not define */
  readonly attribute: (name: string) => string | undefined;
  readonly attributeNames: readonly string[];
  /** Elements in it, without text and comments. */
  readonly children: readonly XmlElement[];
  /** The text right in it, decoded. @throws VM_UNSUPPORTED as `attribute` */
  readonly text: () => string;
  /** Offsets in the document: that of the first `<`, and that behind the last `>`. */
  readonly start: number;
  readonly end: number;
}

/** Bytes `start` to `end` of the document are replaced. */
export interface XmlEdit {
  readonly start: number;
  readonly end: number;
  readonly text: string;
}

/** What the protocol of libvirt lets through in one text (REMOTE_STRING_MAX of remote_protocol.x). */
export const MAX_XML_CHARS = 4 << 20;
/** The limit of libxml2, by which libvirt reads, without its option for huge documents. */
const MAX_DEPTH = 256;
/** The key of the attributes in an element's node, beside its name. */
const ATTRIBUTES = ':@';
const TEXT = '#text';
const CDATA = '#cdata';
/** Char of XML 1.0: what no document may hold, not even as a reference. */
const FORBIDDEN = /[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\p{Cs}]/u;

/** Where `<!` declares nothing: comments, and text that is taken as it stands. */
const VERBATIM = /<!--[\s\S]*?-->|<!\[CDATA\[[\s\S]*?\]\]>/g;

const METADATA = XMLParser.getMetaDataSymbol() as symbol;

type Node = Readonly<Record<string | symbol, unknown>>;

/**
 * @param what it is, with the name of the domain: for the error
 * @throws VM_UNSUPPORTED
 */
export function parseXml(xml: string, what: string): XmlElement {
  if (xml.length > MAX_XML_CHARS) throw refused(what, `it is longer than ${MAX_XML_CHARS >> 20} MiB`);
  if (!/^<[^!?]/.test(xml)) throw refused(what, 'it does not begin with an element');
  if (FORBIDDEN.test(xml)) throw refused(what, 'it holds characters that XML does not allow');
  if (xml.replace(VERBATIM, '').includes('<!')) throw refused(what, 'it declares a document type');
  // eslint-disable-next-line @typescript-eslint/no-deprecated -- its successor is another package, same code
  const valid = XMLValidator.validate(xml);
  if (valid !== true) throw refused(what, `${valid.err.msg} (line ${valid.err.line})`);
  const [root, ...more] = elementsOf(parsed(xml, what), what);
  if (root === undefined || more.length > 0) throw refused(what, 'it is not one element');
  return root;
}

function parsed(xml: string, what: string): readonly Node[] {
  const parser = new XMLParser({
    preserveOrder: true,
    captureMetaData: true,
    ignoreAttributes: false,
    attributeNamePrefix: '',
    textNodeName: TEXT,
    cdataPropName: CDATA,
    ignoreDeclaration: true,
    ignorePiTags: true,
    parseTagValue: false,
    parseAttributeValue: false,
    trimValues: false,
    processEntities: false,
    maxNestedTags: MAX_DEPTH,
    // Names that JavaScript gives a meaning to are no names of libvirt.
    onDangerousProperty: (name: string) => {
      throw new Error(`the name ${name} is not allowed`);
    },
  });
  try {
    return parser.parse(xml) as readonly Node[];
  } catch (cause) {
    throw refused(what, describeError(cause), cause);
  }
}

function elementsOf(nodes: readonly Node[], what: string): readonly XmlElement[] {
  return nodes.flatMap((node) => elementOf(node, what) ?? []);
}

/** Undefined for text. */
function elementOf(node: Node, what: string): XmlElement | undefined {
  const name = Object.keys(node).find((key) => key !== ATTRIBUTES);
  if (name === undefined || name === TEXT || name === CDATA) return undefined;
  const inside = node[name] as readonly Node[];
  const attributes = new Map(Object.entries((node[ATTRIBUTES] ?? {}) as Record<string, string>));
  const place = node[METADATA] as { readonly startIndex?: number; readonly endIndex?: number } | undefined;
  if (place?.startIndex === undefined || place.endIndex === undefined)
    throw refused(what, `the element ${name} has no end`);
  return {
    name,
    attribute: (wanted) => {
      const value = attributes.get(wanted);
      return value === undefined ? undefined : decoded(value, what);
    },
    attributeNames: [...attributes.keys()],
    children: elementsOf(inside, what),
    text: () =>
      inside
        .map((part) => {
          if (typeof part[TEXT] === 'string') return decoded(part[TEXT], what);
          const verbatim = (part[CDATA] as readonly Node[] | undefined)?.[0]?.[TEXT];
          return typeof verbatim === 'string' ? verbatim : '';
        })
        .join(''),
    start: place.startIndex,
    end: place.endIndex,
  };
}

function decoded(value: string, what: string): string {
  try {
    const text = unescaped(value);
    if (!FORBIDDEN.test(text)) return text;
  } catch {
    // Told below.
  }
  throw refused(what, 'it refers to a character or an entity that XML does not define');
}

/** The elements at a path of names below this one, in the order of the document. */
export function below(element: XmlElement, ...names: readonly string[]): readonly XmlElement[] {
  return names.reduce<readonly XmlElement[]>(
    (at, name) => at.flatMap(({ children }) => children.filter((child) => child.name === name)),
    [element],
  );
}

/** The element and all in it, in the order of the document. */
export function* withAllBelow(element: XmlElement): Generator<XmlElement, void, void> {
  yield element;
  for (const child of element.children) yield* withAllBelow(child);
}

/** @param edits that do not overlap */
export function applyEdits(xml: string, edits: readonly XmlEdit[]): string {
  let done = '';
  let at = 0;
  for (const { start, end, text } of [...edits].sort((a, b) => a.start - b.start)) {
    done += xml.slice(at, start) + text;
    at = end;
  }
  return done + xml.slice(at);
}

/**
 * The start tag anew, with these attributes changed or added, or left out where they are undefined. The
 * others stay as they were.
 */
export function withAttributes(
  xml: string,
  element: XmlElement,
  changes: Readonly<Record<string, string | undefined>>,
): XmlEdit {
  const end = startTagEnd(xml, element.start);
  const names = [...element.attributeNames, ...Object.keys(changes)];
  const attributes = [...new Set(names)].flatMap((name) => {
    const value = name in changes ? changes[name] : element.attribute(name);
    return value === undefined ? [] : ` ${name}='${escaped(value)}'`;
  });
  const close = xml[end - 2] === '/' ? '/>' : '>';
  return { start: element.start, end, text: `<${element.name}${attributes.join('')}${close}` };
}

/** The element with this text in it and nothing else. */
export function withText(xml: string, element: XmlElement, text: string): XmlEdit {
  const end = startTagEnd(xml, element.start);
  const startTag = xml.slice(element.start, end).replace(/\s*\/>$/, '>');
  return { start: element.start, end: element.end, text: `${startTag}${escaped(text)}</${element.name}>` };
}

/** The element is taken out, with the white space before it. */
export function without(xml: string, { start, end }: XmlElement): XmlEdit {
  return { start: xml.slice(0, start).trimEnd().length, end, text: '' };
}

/** Behind the `>` that is in no attribute's quotes. */
function startTagEnd(xml: string, start: number): number {
  let quote = '';
  for (let at = start; at < xml.length; at++) {
    const char = xml[at]!;
    if (quote === '' && char === '>') return at + 1;
    if (quote === '' && (char === '"' || char === "'")) quote = char;
    else if (char === quote) quote = '';
  }
  return xml.length;
}

function refused(what: string, why: string, cause?: unknown): CheckpointError {
  return new CheckpointError('VM_UNSUPPORTED', `${what} cannot be used: ${why}`, {
    ...(cause === undefined ? {} : { cause }),
    hint: 'it must be whole XML as virsh dumpxml writes it; virsh define says what libvirt itself makes of it',
  });
}
