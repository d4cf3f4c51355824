/**
 * How much memory a restored domain may have. libxl takes it from the configuration, and one that was read when the domain had ballooned
 * down keeps a restore from building the memory that it has by now. So each checkpoint records what holds in its stop.
 *
 * Sources: libxl__build_pre of tools/libs/light/libxl_dom.c (target_memkb and 1 MiB), docs/misc/xenstore-paths.pandoc (memory/target).
 */

import type { JsonObject } from '../../src/types.js';
import type { XenDomain } from './domain.js';
import { objectOf } from './xl.js';
import { storeText } from './xenstore.js';

/** LIBXL_MAXMEM_CONSTANT: what a domain may have beyond its target. */
const SLACK_KIB = 1024;
const KIB_PER_PAGE = 4;

/** In KiB: what the domain was told to have; more while it has not given back yet what it should. @throws VM_GONE */
export function memoryTargetOf(domain: XenDomain): number {
  const told = Number(storeText(domain.calls, `/local/domain/${domain.domid}/memory/target`) ?? '');
  const hasKib = domain.info().totalPages * KIB_PER_PAGE;
  return Number.isInteger(told) && hasKib <= told + SLACK_KIB ? told : hasKib;
}

/** libxl's configuration, for a domain with so much memory. */
export function withMemoryTarget(config: JsonObject, targetKib: number): JsonObject {
  const built = objectOf(config.b_info);
  const maxKib = Math.max(Number(built.max_memkb ?? 0), targetKib);
  return { ...config, b_info: { ...built, target_memkb: targetKib, max_memkb: maxKib } };
}
