/** Where a frame was read from, for messages. */
export interface FramePlace {
  readonly key: string;
  readonly frame: number;
}
