/**
 * Runs in dom0, as a process of its own: suspends a guest as a checkpoint does and dies, and so does its guard.
 * Arguments: address of the guest, runtime folder.
 */

import { fileURLToPath } from 'node:url';

import { attachXen } from '../../../../adapters/xen/attach.js';

const [address = '', runtimeDir = ''] = process.argv.slice(2);
const modulePath = fileURLToPath(new URL('./idle-guard.js', import.meta.url));
const vm = await attachXen(address, { runtimeDir }, { modulePath, args: [] });
await vm.runState.pause();
process.kill(process.pid, 'SIGKILL');
