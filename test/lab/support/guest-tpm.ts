/** The TPM of a lab's guest, spoken to without any program of its own. */

import type { LabMachine } from '../machine.js';

/** TPM2_PCR_Extend of PCR 16 by 32 bytes of 0x11, with an empty password. Source: TPM 2.0 library, part 3. */
const EXTEND_PCR =
  `8002 00000041 00000182 00000010 00000009 40000009 0000 00 0000 00000001 000b ${'11'.repeat(32)}`
    .replaceAll(' ', '')
    .replace(/../g, (byte) => `\\x${byte}`);

export const extendPcr = (machine: LabMachine): Promise<string> =>
  machine.guest(
    `printf '${EXTEND_PCR}' >/tmp/tpm; exec 9<>/dev/tpm0; cat /tmp/tpm >&9; dd bs=4096 count=1 <&9 2>/dev/null | wc -c; exec 9>&-`,
  );
/** PCR 16, hexadecimal. */
export const readPcr = (machine: LabMachine): Promise<string> =>
  machine.guest('cat /sys/class/tpm/tpm0/pcr-sha256/16');
