/** Runs in dom0: scenarios one after the other, each with a result that the host's test reads. */

import { appendFileSync, mkdirSync, rmSync } from 'node:fs';
import { performance } from 'node:perf_hooks';

export type Figures = Readonly<Record<string, unknown>>;

export interface Scenario {
  readonly name: string;
  readonly run: (context: Context) => Promise<Figures>;
}

export interface Context {
  /** An empty folder on a tmpfs. */
  readonly dir: string;
  readonly say: (text: string) => void;
}

/** Without arguments all scenarios, else those named. */
export async function runScenarios(all: readonly Scenario[], args: readonly string[]): Promise<void> {
  const chosen = args.length === 0 ? all : all.filter(({ name }) => args.includes(name));
  for (const { name, run } of chosen) {
    const dir = `/tmp/scenario-${name}`;
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    const started = performance.now();
    const say = (text: string): void => {
      process.stdout.write(`${name} ${((performance.now() - started) / 1000).toFixed(1)} s: ${text}\n`);
    };
    say('starts');
    let outcome: Figures;
    try {
      outcome = { ok: true, figures: await run({ dir, say }) };
    } catch (error) {
      outcome = { ok: false, error: error instanceof Error ? (error.stack ?? error.message) : String(error) };
    }
    const result = { name, ...outcome, seconds: (performance.now() - started) / 1000 };
    say(JSON.stringify(result));
    appendFileSync('/out/results.jsonl', JSON.stringify(result) + '\n');
    rmSync(dir, { recursive: true, force: true });
  }
}

export function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(`does not hold: ${what}`);
}
