/** Packages that the bundle leaves outside. koffi and piscina load files that lie beside them; the other two are large, and for one command only. */
export const OUTSIDE = ['koffi', 'piscina', 'linkedom', '@observablehq/plot'];
