/** Pictures of the bundled models' training sets, from sheets with one row per class. */

import { request } from "../../shared/api.js";
import { cut, decode } from "./pictures.js";

const COLUMNS = 8;
const SHEETS = { "fashion-mnist": "fashion-mnist.png", digits: "digits.png" };

/** @param {any} card @returns {Promise<import("./pictures.js").Picture[][]>} by class; empty if there is no sheet of this model */
export async function trainingPictures(card) {
  const name = SHEETS[card.name];
  if (!name || !card.labels.length) return [];
  const sheet = await decode(await (await request(`/playground/learn/examples/${name}`)).blob(), card.channels);
  const { width, height, channels } = card;
  if (sheet.width !== COLUMNS * width || sheet.height !== card.labels.length * height) return [];
  return card.labels.map((_, row) => Array.from({ length: COLUMNS }, (_, column) => cut(sheet, column * width, row * height, width, height, channels)));
}
