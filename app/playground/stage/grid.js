/** All pictures of a job in one PNG, as the viewer shows them. */

import { columnsOf } from "../shared/canvas.js";

const GAP_SHARE = 1 / 28; // of a picture's width, between two of them
const MIN_SIDE = 112; // pixels; smaller pictures are enlarged by an integer factor

/** @param {Blob[]} files @returns {Promise<Blob>} */
export async function gridOf(files) {
  const tiles = await Promise.all(files.map((file) => createImageBitmap(file)));
  const [{ width, height }] = tiles;
  const factor = Math.max(1, Math.ceil(MIN_SIDE / Math.min(width, height)));
  const gap = Math.max(1, Math.round(width * factor * GAP_SHARE));
  const columns = columnsOf(tiles.length);
  const size = [columns, Math.ceil(tiles.length / columns)].map((count, k) => count * ([width, height][k] * factor + gap) - gap);
  const canvas = Object.assign(document.createElement("canvas"), { width: size[0], height: size[1] });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, ...size);
  context.imageSmoothingEnabled = false;
  tiles.forEach((tile, k) => context.drawImage(tile, (k % columns) * (width * factor + gap), Math.floor(k / columns) * (height * factor + gap), width * factor, height * factor));
  return new Promise((resolve, reject) => canvas.toBlob((file) => (file ? resolve(file) : reject(new Error("The grid cannot be made."))), "image/png"));
}
