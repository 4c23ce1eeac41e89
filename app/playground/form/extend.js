/** A picture on a larger canvas, to continue it beyond its edges (outpainting). Loaded when a picture is first extended. */

import { drawFitted } from "../shared/inputs.js";

/**
 * Where a picture lies on its larger canvas, in whole pixels. A model of any size gets a larger canvas; for one of a fixed
 * size, and beyond the largest canvas, the picture is reduced instead.
 * @param {[number, number]} size of the picture, as the model sees it
 * @param {{left: number, right: number, top: number, bottom: number}} added shares of the picture's sides
 * @param {{size_multiple: number | null, max_pixels: number | null, latent: {downscale: number} | null}} card
 * @returns {{size: [number, number], place: [number, number, number, number]}} of the canvas; left, top, width, height
 */
export function layout(size, added, card) {
  const sides = [[added.left, added.right], [added.top, added.bottom]];
  const unit = card.latent?.downscale ?? 1; // masks are of whole latents
  const larger = /** @type {[number, number]} */ (size.map((side, k) => roundUp(side * (1 + sides[k][0] + sides[k][1]), card.size_multiple ?? 1)));
  const fits = card.size_multiple !== null && larger[0] * larger[1] <= (card.max_pixels ?? Infinity);
  const canvas = fits ? larger : size;
  const scale = fits ? 1 : 1 / Math.max(...sides.map(([before, after]) => 1 + before + after));
  const place = size.map((side) => Math.max(unit, Math.round((side * scale) / unit) * unit));
  const offset = sides.map(([before, after], k) => {
    const share = before + after ? before / (before + after) : 0.5;
    return Math.round(((canvas[k] - place[k]) * share) / unit) * unit;
  });
  return { size: canvas, place: [offset[0], offset[1], place[0], place[1]] };
}

/** The picture at its place, over a stretched copy of itself. @param {ImageBitmap} bitmap @returns {Promise<Blob>} a PNG */
export function draw(bitmap, [width, height], { size, place }) {
  const fitted = Object.assign(document.createElement("canvas"), { width, height });
  drawFitted(fitted.getContext("2d"), bitmap, width, height);
  const canvas = Object.assign(document.createElement("canvas"), { width: size[0], height: size[1] });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(fitted, 0, 0, ...size);
  context.drawImage(fitted, ...place);
  return new Promise((resolve, reject) => canvas.toBlob((file) => (file ? resolve(file) : reject(new Error("The picture cannot be extended."))), "image/png"));
}

const roundUp = (value, multiple) => Math.ceil(Math.round(value) / multiple) * multiple;
