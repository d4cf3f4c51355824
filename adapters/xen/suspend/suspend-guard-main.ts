/**
 * The pause guard of a Xen domain (see `adapters/guard/pause-guard-process.ts`): wakes the guest when Cairn
 * died while it was suspended, or was about to be. Arguments: major and minor of Xen's release, domain id,
 * uuid; of a guest with a device model the path of its monitor.
 *
 * Within 100 ms of Cairn's death, or of the limit of the pause, a suspended guest runs again. A request that
 * the guest has not taken yet is withdrawn; one that it has taken leads to a suspend, for which the guard
 * waits.
 */

import { isCheckpointError } from '../../../src/errors.js';
import { runPauseGuard } from '../../guard/pause-guard-process.js';
import { XenDomain } from '../domain/domain.js';
import { bindXen } from '../ffi/bind.js';
import { resumeDeviceModel } from '../devices/device-model.js';
import { wake } from './resume-domain.js';
import { withdrawSuspend } from '../domain/xenstore.js';

const RETRY_MS = 100;
let domain: XenDomain | undefined;

function domainOf([major = '', minor = '', domid = '']: readonly string[]): XenDomain {
  domain ??= new XenDomain(bindXen({ major: Number(major), minor: Number(minor) }), Number(domid));
  return domain;
}

runPauseGuard({
  retryMs: RETRY_MS,
  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  standsStill: async (args) => domainOf(args).info().isSuspended,
  resumeOnce: async (_, args) => {
    const [, , , uuid = '', monitor = ''] = args;
    const domain = domainOf(args);
    const deviceModel = monitor === '' ? undefined : { resume: () => resumeDeviceModel(monitor) };
    try {
      if (domain.info().uuid !== uuid) return true;
      const withdrawn = withdrawSuspend(domain.calls, domain.domid);
      // A withdrawn request is the end of it. Otherwise the guest is suspended now, or will be.
      return (await wake(domain, deviceModel)) || withdrawn;
    } catch (error) {
      return isCheckpointError(error, 'VM_GONE');
    }
  },
});
