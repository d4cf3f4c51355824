/** The pause guard of one attachment: started when it is first needed, and once more when it has ended. */

import { PauseGuard, type Guarded, type GuardProgram } from './pause-guard.js';

export class GuardKeeper {
  readonly #program: GuardProgram;
  readonly #guarded: () => Promise<Guarded>;
  #guard: Promise<PauseGuard> | undefined;

  /** @param guarded is asked at each start */
  constructor(program: GuardProgram, guarded: () => Promise<Guarded>) {
    this.#program = program;
    this.#guarded = guarded;
  }

  /** The guard, ready. @throws VM_STATE when it does not come up: without it nothing is paused */
  async ready(): Promise<PauseGuard> {
    const before = this.#guard;
    const present = await this.present();
    if (present?.isAlive === true) return present;
    // Somebody else who asks meanwhile gets the same one.
    if (this.#guard === before)
      this.#guard = this.#guarded().then((guarded) => PauseGuard.start(this.#program, guarded));
    return this.#guard!;
  }

  /** The guard that was started last, alive or not; undefined when none came up. */
  async present(): Promise<PauseGuard | undefined> {
    return this.#guard?.catch(() => undefined);
  }

  /** Leaves the guard to itself: it sees to what it was told of. The next pause gets another. */
  async release(): Promise<void> {
    const guard = await this.present();
    this.#guard = undefined;
    guard?.close();
  }
}
