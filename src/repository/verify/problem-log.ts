/**
 * Damage that verification met: reported as it is met, and counted. Anything that is not about damage is
 * thrown on.
 */

import { isCheckpointError } from '../../errors.js';
import { asDamagedObject, damaged, type DamagedObject } from '../../records/damage.js';

export class ProblemLog {
  readonly #onProblem: (problem: DamagedObject) => void;
  #count = 0;

  constructor(onProblem: (problem: DamagedObject) => void) {
    this.#onProblem = onProblem;
  }

  get count(): number {
    return this.#count;
  }

  report(problem: DamagedObject): void {
    this.#count++;
    this.#onProblem(problem);
  }

  /**
   * @param key the object that was looked at; an error that names another one goes by that
   * @throws an error that is not about damage
   */
  reportError(key: string, error: unknown): void {
    const problem = asDamagedObject(key, error);
    const named = isCheckpointError(error) ? error.detail.key : undefined;
    this.report(typeof named === 'string' ? { ...problem, key: named } : problem);
  }

  fail(key: string, what: string): void {
    this.reportError(key, damaged(key, what));
  }

  /**
   * @param report false for damage that is reported already
   * @returns whether the work went well
   * @throws an error that is not about damage, when it is to be reported
   */
  async attempt(key: string, work: () => unknown, report = true): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (error) {
      if (report) this.reportError(key, error);
      return false;
    }
  }
}
