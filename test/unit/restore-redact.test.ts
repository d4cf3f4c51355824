import { describe, expect, it } from '@jest/globals';

import { parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';
import { withoutOptionValues } from '../../adapters/kvm/restore/redact.js';

const options = parseCommandLine([
  ...['-m', '256', '-object', 'secret,id=s0,data=hunter,,2'],
  ...['-object', '{"qom-type":"secret","id":"s1","data":"pa55"}'],
  ...['-smbios', 'type=11,value=io.systemd.credential:x=topsecret'],
  ...['-drive', 'file=/srv/web1.qcow2,if=virtio'],
]);

describe('what QEMU wrote, in an error text', () => {
  it.each([
    [
      'repeats an option',
      'qemu: -object secret,id=s0,data=hunter,,2: duplicate id s0',
      'qemu: -object ...: duplicate id s0',
    ],
    [
      'repeats an option in JSON',
      'qemu: -object {"qom-type":"secret","id":"s1","data":"pa55"}: no',
      'qemu: -object ...: no',
    ],
    ['names a secret by itself', `value 'hunter,2' is odd, so is pa55`, `value '...' is odd, so is ...`],
    ['names a credential', 'bad io.systemd.credential:x=topsecret', 'bad ...'],
  ])('does not hold a secret when it %s', (_, text, redacted) => {
    expect(withoutOptionValues(text, options)).toBe(redacted);
  });

  it('still says what is wrong', () => {
    expect(
      withoutOptionValues(
        "qemu: -drive file=/srv/web1.qcow2,if=virtio: Could not open '/srv/web1.qcow2': 256 of them",
        options,
      ),
    ).toBe("qemu: -drive ...: Could not open '/srv/web1.qcow2': 256 of them");
  });
});
