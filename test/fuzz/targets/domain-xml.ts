/** The XML of a libvirt domain, as a checkpoint recorded it: read, and changed as a restore changes it. */

import { disksIn, withDisk } from '../../../adapters/libvirt/xml/domain-disks.js';
import {
  editedXml,
  hasFileMemory,
  identityIn,
  recordedXml,
  renamed,
  withNewMacs,
} from '../../../adapters/libvirt/xml/domain-xml.js';
import { mutateText } from '../mutate-bytes.js';
import { must, type OpenTarget } from '../target.js';

const UUID = '30c526e0-ee48-4b63-8d6a-f7642f082b91';
const NEW_UUID = '11111111-2222-3333-4444-555555555555';
const NEW_NAME = 'web2 <&> \'"';
const NEW_PATH = '/srv/<new> & \'"/a.qcow2';
const DOMAIN = `<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web &amp; db</name>
  <uuid>${UUID}</uuid>
  <metadata><app:owner xmlns:app="urn:x" name='a "b"'><![CDATA[<name>not this</name>]]></app:owner></metadata>
  <!-- <disk type='file'><target dev='vdz'/></disk> -->
  <memoryBacking><source type='file'/></memoryBacking>
  <devices>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache="none"/>
      <source dev='/dev/vg/web' index='2'><seclabel model='dac' relabel='no'/></source>
      <backingStore type='file'><format type='qcow2'/><source file='/base'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network'><source protocol='rbd' name='pool/image'/><target dev='vdb'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='default'/></interface>
    <?keep this?>
  </devices>
  <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>
</domain>`;

const WORDS = [
  ...[
    '<',
    '>',
    '/>',
    '</',
    '<a>',
    '</a>',
    '<a/>',
    "='",
    '"',
    '&amp;',
    '&#0;',
    '&#x110000;',
    '&lt',
    '&x;',
    ']]>',
  ],
  ...[
    '<!--',
    '-->',
    '<![CDATA[',
    ']]>',
    '<?',
    '?>',
    '<!DOCTYPE x [',
    '<!ENTITY a "b">',
    '\0',
    '\ud800',
    '\ufffe',
  ],
  ...[
    '<disk>',
    '</disk>',
    '<name>',
    '</name>',
    '<uuid/>',
    '<target dev="vda"/>',
    '<source/>',
    '<driver/>',
    '<devices>',
  ],
  ...[
    "<mac address='52:54:00:",
    '<__proto__/>',
    ' constructor="1"',
    ' toString="a"',
    ' xmlns:a="b"',
    '<a:b>',
    '#text',
  ],
];

export const openTarget: OpenTarget = () =>
  Promise.resolve({
    seeds: [
      Buffer.from(DOMAIN),
      Buffer.from(`<domain><name>a</name><uuid>${UUID}</uuid></domain>`),
      Buffer.from('<domain><devices><disk><target dev="vda"/></disk></devices></domain>'),
    ],
    mutate: mutateText(WORDS),
    // A tree of objects for each element.
    allowedBytes: () => 32 << 20,
    run: (input) => {
      const xml = recordedXml({ domainXml: Buffer.from(input).toString('utf8') }, 'c1');
      const disks = disksIn(xml);
      hasFileMemory(xml);
      const { name, uuid } = identityIn(xml);
      const other = renamed(xml, NEW_NAME, NEW_UUID);
      const found = identityIn(other);
      must(found.name === NEW_NAME && found.uuid === NEW_UUID, `another name and UUID, not ${found.name}`);
      const same = identityIn(editedXml(other, [`-uuid=${NEW_UUID}`]));
      must(same.uuid === NEW_UUID, 'the same UUID');
      must(disksIn(withNewMacs(xml)).length === disks.length, 'the disks stay');
      const target = disks[0]?.target;
      if (target !== undefined) {
        const moved = disksIn(withDisk(xml, target, NEW_PATH, 'qcow2'));
        must(moved.length === disks.length, 'as many disks');
        must(moved[0]!.path === NEW_PATH, `the disk at its new path, not at ${moved[0]!.path}`);
      }
      return Promise.resolve(`disks ${disks.length} name ${name.length > 0} uuid ${uuid.length > 0}`);
    },
  });
