/** From a running VM to a trace file: the VM's own best tracker, one file for each epoch length. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { chooseTracker } from '../../src/checkpoint/trust/tracker-choice.js';
import { hypervisors } from '../../src/index.js';
import { recordEpochs, type RecordOptions } from '../../src/study/trace/recorder.js';
import type { TraceHeader } from '../../src/study/trace/trace-format.js';
import { TraceWriter } from './trace-writer.js';

export interface TraceRequest extends RecordOptions, Pick<TraceHeader, 'workload' | 'description'> {
  readonly address: string;
  readonly path: string;
  /** Ends early once the file has this length. */
  readonly maxFileBytes: number;
}

/** @returns length of the file. Leaves no file behind when it fails. */
export async function recordTrace(request: TraceRequest): Promise<number> {
  const runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-trace-'));
  const vm = await hypervisors().forAddress(request.address).attach(request.address, { runtimeDir });
  try {
    const layout = await vm.memory.layout();
    const { tracker } = await chooseTracker(vm, 'auto');
    try {
      const writer = new TraceWriter(request.path, {
        workload: request.workload,
        description: request.description,
        epochMs: request.epochMs,
        layout,
        hypervisor: vm.identity.hypervisor,
        machineType: vm.identity.machineType,
        tracker: tracker.kind,
        recorded: new Date().toISOString(),
      });
      try {
        for await (const epoch of recordEpochs(vm, layout, tracker, request)) {
          writer.append(epoch);
          if (writer.sizeBytes > request.maxFileBytes) break;
        }
        writer.close();
      } finally {
        writer.abort();
      }
      return writer.sizeBytes;
    } finally {
      await tracker.stop();
    }
  } finally {
    await vm.close();
    rmSync(runtimeDir, { recursive: true, force: true });
  }
}
