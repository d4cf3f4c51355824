/** Stand-ins for parts of the product that watch or spoil what passes through them. */

/** `original` with some methods replaced; the others run on the original, private fields included. */
export function instead<T extends object>(original: T, changes: Partial<T>): T {
  return new Proxy(original, {
    get(target, name) {
      const value: unknown = Reflect.get(name in changes ? changes : target, name);
      return typeof value === 'function'
        ? (value.bind(name in changes ? changes : target) as unknown)
        : value;
    },
  });
}
