/**
 * The environment of every test file. What a file and its child processes put into temporary folders, and into Cairn's runtime folder when they name
 * none, lies in one folder, which goes when the file is through, however it ended.
 */

import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { TestEnvironment } from 'jest-environment-node';

export default class FolderEnvironment extends TestEnvironment {
  readonly #folder: string;
  readonly #before: ReadonlyMap<string, string | undefined>;

  constructor(...[config, context]: ConstructorParameters<typeof TestEnvironment>) {
    // Sockets lie in it, whose paths may have 107 bytes at most: so its name is short. The folder of a run belongs to test files alone.
    const prefix = process.env.CAIRN_TEST_RUN === undefined ? 'ct-' : '';
    const folder = mkdtempSync(`${tmpdir()}/${prefix}`);
    // The QEMUs of libvirt run as another user, and have files in folders below it.
    chmodSync(folder, 0o711);
    const variables = { TMPDIR: folder, CAIRN_RUNTIME_DIR: join(folder, 'runtime') };
    const before = new Map(Object.keys(variables).map((name) => [name, process.env[name]]));
    // `os.tmpdir` reads the process's own variable each time it is asked, so both it and the copy that the environment makes need them.
    Object.assign(process.env, variables);
    super(config, context);
    this.#folder = folder;
    this.#before = before;
  }

  override async teardown(): Promise<void> {
    await super.teardown();
    for (const [name, value] of this.#before) {
      if (value === undefined) Reflect.deleteProperty(process.env, name);
      else process.env[name] = value;
    }
    rmSync(this.#folder, { recursive: true, force: true, maxRetries: 10 });
  }
}
