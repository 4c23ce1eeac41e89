/** Pictures as numbers in −1 … 1, and how they are drawn. */

import { el, setText } from "../../shared/dom.js";

/** Row by row, the channels of a pixel next to each other. @typedef {{width: number, height: number, channels: number, data: Float32Array}} Picture */

/** @returns {Picture} */
export const picture = (width, height, channels, data) => ({ width, height, channels, data });

/** The same shape with values computed from those of other pictures. @param {(...values: number[]) => number} combine @param {...Picture} sources @returns {Picture} */
export function combined(combine, ...sources) {
  const [{ width, height, channels, data }] = sources;
  return picture(width, height, channels, Float32Array.from(data, (_, i) => combine(...sources.map((each) => each.data[i]))));
}

/** The mean of a function of the values. */
export function mean(combine, ...sources) {
  const { data } = combined(combine, ...sources);
  return data.reduce((sum, each) => sum + each, 0) / data.length;
}

/** @param {Blob} blob of an image file @returns {Promise<Picture>} */
export async function decode(blob, channels) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  return fromSource(bitmap, bitmap.width, bitmap.height, channels);
}

/** @param {Picture} source @returns {Promise<Blob>} a PNG of it, in 8 bits */
export function encode(source) {
  const canvas = document.createElement("canvas");
  paint(canvas, source);
  return new Promise((resolve, reject) => canvas.toBlob((file) => (file ? resolve(file) : reject(new Error("The picture cannot be sent."))), "image/png"));
}

/** The pixels of a canvas, image or bitmap, scaled so that it fills the size. @returns {Picture} */
export function fromSource(source, width, height, channels) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  const scale = Math.max(width / source.width, height / source.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, (width - scale * source.width) / 2, (height - scale * source.height) / 2, scale * source.width, scale * source.height);
  const { data } = context.getImageData(0, 0, width, height);
  const gray = (i) => 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
  const values = new Float32Array(width * height * channels);
  for (let i = 0; i < width * height; i += 1) {
    if (channels === 1) values[i] = gray(i) / 127.5 - 1;
    else for (let c = 0; c < 3; c += 1) values[3 * i + c] = data[4 * i + c] / 127.5 - 1;
  }
  return picture(width, height, channels, values);
}

/** A part of a picture. @param {Picture} sheet @returns {Picture} */
export function cut(sheet, left, top, width, height, channels) {
  const values = new Float32Array(width * height * channels);
  for (let y = 0; y < height; y += 1) {
    const start = ((top + y) * sheet.width + left) * channels;
    values.set(sheet.data.subarray(start, start + width * channels), y * width * channels);
  }
  return picture(width, height, channels, values);
}

/** torch's (C, H, W) values as a picture. */
export function fromPlanes(values, width, height, channels) {
  const size = width * height;
  return picture(width, height, channels, Float32Array.from(values, (_, i) => values[(i % channels) * size + Math.floor(i / channels)]));
}

/** Draw values in −1 … 1 as black … white. @param {HTMLCanvasElement} canvas @param {Picture} source */
export function paint(canvas, { width, height, channels, data }) {
  draw(canvas, width, height, (i, c) => 127.5 * (data[i * channels + (channels === 1 ? 0 : c)] + 1));
}

const [NEGATIVE, ZERO, POSITIVE] = [[64, 140, 255], [14, 13, 13], [255, 138, 92]];

/** Draw signed values: blue below 0, black at 0, orange above. @param {number} scale the value of full color */
export function paintSigned(canvas, { width, height, channels, data }, scale = 2.5) {
  draw(canvas, width, height, (i, c) => {
    let value = 0;
    for (let k = 0; k < channels; k += 1) value += data[i * channels + k] / channels;
    const amount = Math.min(1, Math.abs(value) / scale);
    return ZERO[c] + amount * ((value < 0 ? NEGATIVE : POSITIVE)[c] - ZERO[c]);
  });
}

function draw(canvas, width, height, color) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i += 1) {
    for (let c = 0; c < 3; c += 1) image.data[4 * i + c] = color(i, c);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** A canvas with a caption below. `caption` may be text or nodes. */
export function frame(name, { caption = name, size = 28, smooth = false } = {}) {
  const canvas = /** @type {HTMLCanvasElement} */ (el("canvas", { width: size, height: size, role: "img", "aria-label": name, class: smooth ? "smooth" : null }));
  const text = el("figcaption", {}, caption);
  const element = el("figure", { class: "frame" }, el("div", { class: "box" }, canvas), text);
  return { element, canvas, show: (source) => paint(canvas, source), showSigned: (source, scale) => paintSigned(canvas, source, scale), caption: (next) => setText(text, next) };
}

/** Several frames in a row, of equal width. @param {{element: Element}[]} frames */
export const strip = (frames, columns = frames.length) => el("div", { class: "strip", "data-columns": columns }, ...frames.map((each) => each.element));
