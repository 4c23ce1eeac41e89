/** A job's frames by step, kind and image: the noisy picture (`xt`), the network's prediction (`x0`) and the noise that it predicts (`eps`). */

export class Frames {
  constructor() {
    /** @type {number[]} the steps that have frames, ascending */
    this.steps = [];
    /** @type {number[]} the noise level σ of each of these steps */
    this.sigmas = [];
    /** @type {number[]} their timesteps */
    this.times = [];
    /** @type {Map<string, Blob>} */
    this.blobs = new Map();
  }

  /** @type {Set<string>} */
  #kinds = new Set();

  get length() {
    return this.steps.length;
  }

  /** Whether frames of a kind have arrived. */
  has(kind) {
    return this.#kinds.has(kind);
  }

  /** @param {{step: number, t: number, sigma: number, kind: string, image: number, media_type: string, data: string}} event */
  add(event) {
    this.#kinds.add(event.kind);
    this.blobs.set(keyOf(event.step, event.kind, event.image), new Blob([decodeBase64(event.data)], { type: event.media_type }));
    const index = this.indexOf(event.step);
    if (this.steps[index] === event.step) return;
    this.steps.splice(index, 0, event.step);
    this.sigmas.splice(index, 0, event.sigma);
    this.times.splice(index, 0, event.t);
  }

  /** The index of a step, or the index at which it would be inserted. */
  indexOf(step) {
    let index = this.steps.length;
    while (index > 0 && this.steps[index - 1] >= step) index -= 1;
    return index;
  }

  /**
   * One picture per image at `index`: the newest frame up to that step. Images of one job may be at different steps.
   * @returns {(Blob | null)[]}
   */
  pictures(kind, index, count) {
    return Array.from({ length: count }, (_, image) => {
      for (let at = Math.min(index, this.length - 1); at >= 0; at -= 1) {
        const frame = this.blobs.get(keyOf(this.steps[at], kind, image));
        if (frame) return frame;
      }
      return null;
    });
  }

  /**
   * The noise level over the steps as an SVG path in a box of 100 by 100, which `total` frames and the finished picture
   * fill. The noise level of a finished picture is 0; a job that ended early has none.
   */
  curve(total, finished) {
    if (!this.length) return "";
    const levels = finished ? [...this.sigmas, 0] : this.sigmas;
    const highest = Math.max(1, ...levels);
    const x = (i) => ((100 * i) / Math.max(1, total)).toFixed(2);
    const points = levels.map((sigma, i) => `${x(i)} ${(100 - (96 * sigma) / highest).toFixed(2)}`);
    return `M0 100L${points.join("L")}L${x(levels.length - 1)} 100Z`;
  }
}

const keyOf = (step, kind, image) => `${step} ${kind} ${image}`;

function decodeBase64(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
