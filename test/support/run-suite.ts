/** Runs a contract suite where there is no jest: one case after the other, each with the hooks of the groups around it. */

import type { SuiteRunner } from '../contract/suite-runner.js';

export interface CaseResult {
  /** The name of the case, with the names of the groups around it. */
  readonly name: string;
  /** Undefined of a case that passed. */
  readonly error: string | undefined;
}

type Work = () => void | Promise<void>;

interface Group {
  readonly name: string;
  readonly parent: Group | undefined;
  readonly before: Work[];
  readonly after: Work[];
  readonly afterEach: Work[];
  readonly members: (Group | Case)[];
}

interface Case {
  readonly name: string;
  readonly work: Work;
}

/**
 * @param define declares the cases, at once
 * @param onResult called after each case
 * @throws what a `beforeAll` or `afterAll` threw, and when there is no case at all
 */
export async function runSuite(
  define: (runner: SuiteRunner) => void,
  onResult: (result: CaseResult) => void,
): Promise<readonly CaseResult[]> {
  const top = newGroup('', undefined);
  let group = top;
  define({
    describe: (name, body) => {
      const around = group;
      group = newGroup(name, around);
      around.members.push(group);
      body();
      group = around;
    },
    it: (name, work) => void group.members.push({ name, work }),
    beforeAll: (work) => void group.before.push(work),
    afterAll: (work) => void group.after.push(work),
    afterEach: (work) => void group.afterEach.push(work),
  });
  const results: CaseResult[] = [];
  await runGroup(top, (result) => {
    results.push(result);
    onResult(result);
  });
  if (results.length === 0) throw new Error('the suite has no case');
  return results;
}

/** @throws the first failure of a hook: one that follows from it would hide it. */
async function runGroup(group: Group, onResult: (result: CaseResult) => void): Promise<void> {
  const failures: unknown[] = [];
  const attempt = async (work: Work): Promise<void> => {
    try {
      await work();
    } catch (error) {
      failures.push(error);
    }
  };
  await attempt(async () => {
    for (const work of group.before) await work();
    for (const member of group.members) {
      if ('members' in member) await runGroup(member, onResult);
      else onResult({ name: fullName(group, member.name), error: await failureOf(group, member) });
    }
  });
  for (const work of group.after) await attempt(work);
  if (failures.length > 0) throw failures[0];
}

/** A hook that fails after a case is the failure of that case. */
async function failureOf(group: Group, { work }: Case): Promise<string | undefined> {
  let failure: string | undefined;
  const steps = [work];
  for (let around: Group | undefined = group; around !== undefined; around = around.parent)
    steps.push(...around.afterEach);
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      failure ??= error instanceof Error ? (error.stack ?? error.message) : String(error);
    }
  }
  return failure;
}

function fullName(group: Group, name: string): string {
  const own = group.name === '' ? name : `${group.name} > ${name}`;
  return group.parent === undefined ? own : fullName(group.parent, own);
}

function newGroup(name: string, parent: Group | undefined): Group {
  return { name, parent, before: [], after: [], afterEach: [], members: [] };
}
