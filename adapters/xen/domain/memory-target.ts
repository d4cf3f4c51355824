/**
 * How much memory a restored domain may have. libxl takes it from the configuration, and one that was read
 * when the domain had ballooned down keeps a restore from building the memory that it has by now. So each
 * checkpoint records what holds in its stop.
 *
 * A graphics card has its memory from the guest's: the configuration's figures include it, what the guest is
 * told in xenstore does not.
 *
 * Sources: libxl__build_pre of tools/libs/light/libxl_dom.c (target_memkb and 1 MiB),
 * libxl__get_targetmem_fudge of libxl_mem.c, docs/misc/xenstore-paths.pandoc (memory/target).
 */

import type { JsonObject } from '../../../src/types.js';
import type { XenDomain } from './domain.js';
import { objectOf } from './xl.js';
import { storeText } from './xenstore.js';

/** LIBXL_MAXMEM_CONSTANT: what a domain may have beyond its target. */
const SLACK_KIB = 1024;
const KIB_PER_PAGE = 4;

/**
 * The memory in KiB that the configuration is to name: what the domain was told to have and what its graphics
 * card has; more while it has not given back yet what it should.
 * @throws VM_GONE
 */
export function memoryTargetOf(domain: XenDomain, videoKib = 0): number {
  const told = Number(storeText(domain.calls, `/local/domain/${domain.domid}/memory/target`) ?? '');
  const targetKib = told + videoKib;
  const hasKib = domain.info().totalPages * KIB_PER_PAGE;
  return Number.isInteger(told) && hasKib <= targetKib + SLACK_KIB ? targetKib : hasKib;
}

/** Memory of an HVM guest's graphics card, as libxl has settled it. */
export function videoKibOf(config: JsonObject): number {
  const found = objectOf(config.b_info).video_memkb;
  return typeof found === 'number' ? found : 0;
}

/** libxl's configuration, for a domain with so much memory. */
export function withMemoryTarget(config: JsonObject, targetKib: number): JsonObject {
  const built = objectOf(config.b_info);
  const maxKib = Math.max(Number(built.max_memkb ?? 0), targetKib);
  return { ...config, b_info: { ...built, target_memkb: targetKib, max_memkb: maxKib } };
}
