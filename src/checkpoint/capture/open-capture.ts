/** Which of the two captures a checkpoint uses: the tracker says so. */

import type { Capture, CaptureDeps } from './capture.js';
import { CopyingCapture } from './copying.js';
import { PictureCapture } from './picture.js';

export function openCapture(deps: CaptureDeps): Capture {
  const { picture } = deps.tracker.traits;
  return picture === undefined ? new CopyingCapture(deps) : new PictureCapture(picture, deps);
}
