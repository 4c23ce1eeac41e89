/** The frames of a job by step: what the network saw (`xt`) and what it believed (`x0`), image by image. */

export class Film {
  constructor() {
    /** @type {number[]} steps of which there are frames, rising */
    this.steps = [];
    /** @type {number[]} the noise level σ of each of these */
    this.sigmas = [];
    /** @type {Map<string, Blob>} */
    this.frames = new Map();
  }

  get length() {
    return this.steps.length;
  }

  /** @param {{step: number, sigma: number, kind: string, image: number, media_type: string, data: string}} event */
  add(event) {
    this.frames.set(named(event.step, event.kind, event.image), new Blob([bytes(event.data)], { type: event.media_type }));
    const place = this.place(event.step);
    if (this.steps[place] === event.step) return;
    this.steps.splice(place, 0, event.step);
    this.sigmas.splice(place, 0, event.sigma);
  }

  /** Where a step stands, or would stand, among those that are there. */
  place(step) {
    let place = this.steps.length;
    while (place > 0 && this.steps[place - 1] >= step) place -= 1;
    return place;
  }

  /**
   * The pictures of all images at a place, each the newest that it had by then (images of one job may take turns).
   * @returns {(Blob | null)[]}
   */
  pictures(kind, place, count) {
    return Array.from({ length: count }, (_, image) => {
      for (let at = Math.min(place, this.length - 1); at >= 0; at -= 1) {
        const frame = this.frames.get(named(this.steps[at], kind, image));
        if (frame) return frame;
      }
      return null;
    });
  }

  /**
   * The noise level over the film as an SVG path in a box of 100 by 100, which `whole` frames and the picture fill.
   * The picture is without noise.
   */
  curve(whole) {
    if (!this.length) return "";
    const levels = this.length >= whole ? [...this.sigmas, 0] : this.sigmas;
    const most = Math.max(1, ...levels);
    const x = (i) => ((100 * i) / Math.max(1, whole)).toFixed(2);
    const points = levels.map((sigma, i) => `${x(i)} ${(100 - (96 * sigma) / most).toFixed(2)}`);
    return `M0 100L${points.join("L")}L${x(levels.length - 1)} 100Z`;
  }
}

const named = (step, kind, image) => `${step} ${kind} ${image}`;

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
