/**
 * The pause guard of a Xen domain (see `adapters/kvm/pause-guard-process.ts`): wakes the guest when Cairn died while it was suspended,
 * or was about to be. Arguments: major and minor of Xen's release, domain id, uuid.
 *
 * Within 100 ms of Cairn's death a suspended guest runs again. A request that the guest has not taken yet is withdrawn; one
 * that it has taken leads to a suspend, for which the guard waits.
 */

import { isCheckpointError } from '../../src/errors.js';
import { runPauseGuard } from '../kvm/pause-guard-process.js';
import { XenDomain } from './domain.js';
import { bindXen } from './ffi/bind.js';
import { resumeDomain } from './resume-domain.js';
import { withdrawSuspend } from './xenstore.js';

const RETRY_MS = 100;
let domain: XenDomain | undefined;

runPauseGuard({
  retryMs: RETRY_MS,
  resumeOnce: (_, [major = '', minor = '', domid = '', uuid = '']) => {
    domain ??= new XenDomain(bindXen({ major: Number(major), minor: Number(minor) }), Number(domid));
    try {
      if (domain.info().uuid !== uuid) return Promise.resolve(true);
      const withdrawn = withdrawSuspend(domain.calls, domain.domid);
      // A withdrawn request is the end of it. Otherwise the guest is suspended now, or will be.
      return Promise.resolve(resumeDomain(domain) || withdrawn);
    } catch (error) {
      return Promise.resolve(isCheckpointError(error, 'VM_GONE'));
    }
  },
});
