import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';

import { disksIn, withDisk } from '../../adapters/libvirt/xml/domain-disks.js';
import { identityIn, recordedXml, renamed, withNewMacs } from '../../adapters/libvirt/xml/domain-xml.js';
import {
  applyEdits,
  parseXml,
  withAllBelow,
  withAttributes,
  withText,
  type XmlElement,
} from '../../adapters/libvirt/xml/xml-document.js';
import { escaped } from '../../adapters/libvirt/xml/xml-text.js';
import { isCheckpointError } from '../../src/errors.js';

interface Model {
  readonly name: string;
  readonly attributes: readonly (readonly [name: string, value: string])[];
  readonly children: readonly Model[];
}

const UUID = '30c526e0-ee48-4b63-8d6a-f7642f082b91';
/** As virsh dumpxml writes a small domain, with what authors add. */
const DOMAIN = `<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web &amp; db</name>
  <uuid>${UUID}</uuid>
  <metadata>
    <app:owner xmlns:app="urn:x" name='a "b"'><![CDATA[<name>not this</name> & so on]]></app:owner>
  </metadata>
  <!-- <disk type='file'><target dev='vdz'/></disk> and <mac address='52:54:00:00:00:01'/> -->
  <devices>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache="none"/>
      <source dev='/dev/vg/web' index='2'>
        <seclabel model='dac' relabel='no'/>
      </source>
      <backingStore type='file'><format type='qcow2'/><source file='/base'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:aa:bb:cc'/>
      <source network='default'/>
    </interface>
    <?keep this?>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-foo'/>
  </qemu:commandline>
</domain>`;

const name = fc
  .stringMatching(/^[a-z][a-z0-9-]{0,6}$/)
  .filter((text) => !/^(xml|constructor|proto)/.test(text));
/** What XML may hold: no control characters, no halves of a pair. */
const value = fc
  .string({ unit: 'grapheme', maxLength: 12 })
  .map((text) => text.replaceAll(/[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, ''));
const { model } = fc.letrec<{ model: Model }>((tie) => ({
  model: fc.record({
    name,
    attributes: fc.uniqueArray(fc.tuple(name, value), { selector: ([key]) => key, maxLength: 3 }),
    children: fc.oneof({ maxDepth: 3 }, fc.constant([]), fc.array(tie('model'), { maxLength: 3 })),
  }),
}));

/** Rendered with the freedom that an author has. */
function render({ name: tag, attributes, children }: Model, pick: () => number): string {
  const quoted = attributes.map(([key, text]) => {
    const quote = pick() % 2 === 0 ? "'" : '"';
    return `${pick() % 3 === 0 ? '\n  ' : ' '}${key}${pick() % 4 === 0 ? ' = ' : '='}${quote}${escaped(text)}${quote}`;
  });
  const between = (): string =>
    ['', ' ', '\n\t', '<!-- <a b="c>" -->', 'text &lt;', '<![CDATA[</x>]]>', '<?pi x?>'][pick() % 7]!;
  const inside = children.map((child) => between() + render(child, pick)).join('') + between();
  return inside === '' && pick() % 2 === 0
    ? `<${tag}${quoted.join('')}/>`
    : `<${tag}${quoted.join('')}>${inside}</${tag}>`;
}

const document = fc
  .tuple(model, fc.array(fc.nat(1000), { minLength: 1, maxLength: 50 }))
  .map(([of, picks]) => {
    let at = 0;
    return { of, xml: render(of, () => picks[at++ % picks.length]! + at) };
  });

function modelOf(element: XmlElement): Model {
  return {
    name: element.name,
    attributes: element.attributeNames.map((key) => [key, element.attribute(key)!]),
    children: element.children.map(modelOf),
  };
}

/** @returns what it gives, or undefined when it refuses by code. Anything else that is thrown fails the test */
function orRefused<Value>(step: () => Value): Value | undefined {
  try {
    return step();
  } catch (error) {
    if (isCheckpointError(error, 'VM_UNSUPPORTED') || isCheckpointError(error, 'USAGE')) return undefined;
    throw error;
  }
}

describe('XML', () => {
  it('is read as it was meant, and every element is found where it stands', () => {
    fc.assert(
      fc.property(document, ({ of, xml }) => {
        const root = parseXml(xml, 'it');
        expect(modelOf(root)).toEqual(of);
        for (const element of withAllBelow(root)) {
          const own = xml.slice(element.start, element.end);
          expect(modelOf(parseXml(own, 'it'))).toEqual(modelOf(element));
        }
      }),
    );
  });

  it('changes in one start tag, and every other byte stays', () => {
    fc.assert(
      fc.property(document, fc.nat(), name, value, ({ xml }, which, key, text) => {
        const elements = [...withAllBelow(parseXml(xml, 'it'))];
        const element = elements[which % elements.length]!;
        const edit = withAttributes(xml, element, { [key]: text });
        const edited = applyEdits(xml, [edit]);
        expect(edited.startsWith(xml.slice(0, element.start))).toBe(true);
        expect(edited.endsWith(xml.slice(edit.end))).toBe(true);
        const after = [...withAllBelow(parseXml(edited, 'it'))];
        expect(after).toHaveLength(elements.length);
        const changed = after[which % elements.length]!;
        expect(changed.attribute(key)).toBe(text);
        for (const other of element.attributeNames.filter((known) => known !== key))
          expect(changed.attribute(other)).toBe(element.attribute(other));
      }),
    );
  });

  it('takes any text that XML can hold', () => {
    fc.assert(
      fc.property(document, value, ({ xml }, text) => {
        const edited = applyEdits(xml, [withText(xml, parseXml(xml, 'it'), text)]);
        expect(parseXml(edited, 'it').text()).toBe(text);
      }),
    );
  });

  it('that is damaged or hostile is read or refused by code, and never anything else', () => {
    const piece = fc.oneof(
      fc.constantFrom('<', '>', '/', '&', ';', '"', "'", '\0', '\x1b', ']]>', '<!--', '-->', '<![CDATA['),
      fc.constantFrom('<?', '?>', '&#0;', '&#xffffffff;', '&a;', '<!DOCTYPE a>', '<disk>', '</domain>'),
      fc.constantFrom('__proto__', ' constructor="1"', '\ud800', '\r\n', '</devices>', "<a b='", '%x;'),
      fc.string({ unit: 'binary', maxLength: 8 }),
    );
    const damage = fc.array(fc.tuple(fc.nat(DOMAIN.length), fc.nat(40), piece), {
      minLength: 1,
      maxLength: 4,
    });
    fc.assert(
      fc.property(damage, (edits) => {
        let xml = DOMAIN;
        for (const [at, removed, inserted] of edits)
          xml = xml.slice(0, at) + inserted + xml.slice(at + removed);
        const taken = orRefused(() => recordedXml({ domainXml: xml }));
        if (taken === undefined) return;
        expect(taken).toBe(xml);
        orRefused(() => identityIn(xml));
        orRefused(() => disksIn(xml));
        for (const edit of [
          () => renamed(xml, 'b'),
          () => withNewMacs(xml),
          () => withDisk(xml, 'vda', '/x', 'raw'),
        ]) {
          const edited = orRefused(edit);
          // What was whole stays whole.
          if (edited !== undefined) parseXml(edited, 'it');
        }
      }),
      { numRuns: 1000 },
    );
  });
});

describe('a name', () => {
  it('of any text is a name and nothing else', () => {
    fc.assert(
      fc.property(
        value.filter((text) => text !== ''),
        (text) => {
          const edited = renamed(DOMAIN, text, UUID);
          expect(identityIn(edited)).toEqual({ name: text, uuid: UUID });
          expect(edited.replace(`<name>${escaped(text)}</name>`, '<name>web &amp; db</name>')).toBe(DOMAIN);
        },
      ),
    );
  });
});

describe('a disk', () => {
  it('takes any path, and nothing but that disk changes', () => {
    fc.assert(
      fc.property(value, (text) => {
        const path = `/${text}`;
        const moved = withDisk(DOMAIN, 'vda', path, 'qcow2');
        expect(disksIn(moved)).toEqual([
          { target: 'vda', path, format: 'qcow2', type: 'file', isWritable: true },
        ]);
        const [from, to] = ["<disk type='block'", '</disk>\n    <interface'];
        expect(moved.slice(0, moved.indexOf("<disk type='file' device"))).toBe(
          DOMAIN.slice(0, DOMAIN.indexOf(from)),
        );
        expect(moved.slice(moved.lastIndexOf(to))).toBe(DOMAIN.slice(DOMAIN.lastIndexOf(to)));
        expect(moved).toContain("<seclabel model='dac' relabel='no'/>");
        expect(moved).not.toContain('<backingStore');
      }),
    );
  });
});
