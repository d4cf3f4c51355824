/** What reading a chain has cost: counted where objects are fetched and where frames are decoded. */

export interface ReadEffort {
  /** Calls to the storage for parts of packs. */
  readonly fetches: number;
  readonly fetchedBytes: number;
  /** A frame that is decoded twice counts twice. */
  readonly frames: number;
  /** Of the frames, as they are after decompression: what `decodedBytes` exceeds the pages by that were asked for is wasted. */
  readonly decodedBytes: number;
}

export class EffortCounter implements ReadEffort {
  fetches = 0;
  fetchedBytes = 0;
  frames = 0;
  decodedBytes = 0;

  fetched(bytes: Uint8Array): void {
    this.fetches++;
    this.fetchedBytes += bytes.length;
  }

  decoded(body: Uint8Array): void {
    this.frames++;
    this.decodedBytes += body.length;
  }
}
