/**
 * The environment of every test file. What a file and its child processes put into temporary folders lies in one folder, which goes
 * when the file is through, however it ended.
 */

import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';

import { TestEnvironment } from 'jest-environment-node';

/** `os.tmpdir` reads it each time it is asked. */
const VARIABLE = 'TMPDIR';

export default class FolderEnvironment extends TestEnvironment {
  readonly #folder: string;
  readonly #before: string | undefined;

  constructor(...[config, context]: ConstructorParameters<typeof TestEnvironment>) {
    const before = process.env[VARIABLE];
    // Sockets lie in it, whose paths may have 107 bytes at most: so its name is short. The folder of a run belongs to test files alone.
    const prefix = process.env.CAIRN_TEST_RUN === undefined ? 'ct-' : '';
    const folder = mkdtempSync(`${tmpdir()}/${prefix}`);
    // The QEMUs of libvirt run as another user, and have files in folders below it.
    chmodSync(folder, 0o711);
    // Before the environment copies the variables.
    process.env[VARIABLE] = folder;
    super(config, context);
    this.#folder = folder;
    this.#before = before;
  }

  override async teardown(): Promise<void> {
    await super.teardown();
    if (this.#before === undefined) Reflect.deleteProperty(process.env, VARIABLE);
    else process.env[VARIABLE] = this.#before;
    rmSync(this.#folder, { recursive: true, force: true, maxRetries: 10 });
  }
}
