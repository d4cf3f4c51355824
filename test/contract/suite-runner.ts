/** What a contract suite asks of whoever runs it: a part of jest's globals, so that a suite also runs where jest does not. */
export interface SuiteRunner {
  readonly describe: (name: string, body: () => void) => void;
  readonly it: (name: string, body: () => void | Promise<void>) => void;
  readonly beforeAll: (work: () => Promise<void>) => void;
  readonly afterAll: (work: () => Promise<void>) => void;
  readonly afterEach: (work: () => Promise<void>) => void;
}
