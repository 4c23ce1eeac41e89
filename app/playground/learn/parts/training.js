/** Pictures of the bundled models' training sets, from sheets with one row per class, or per prompt of the model's card. */

import { request } from "../../shared/api.js";
import { cut, decode } from "./pictures.js";

const COLUMNS = 8;
const SHEETS = { "fashion-mnist": "fashion-mnist.png", digits: "digits.png", emoji: "emoji.webp" };

/** What a model's pictures show: its classes, or the prompts of its card. @param {any} card @returns {string[]} */
export const subjectsOf = (card) => (card.labels.length ? card.labels : (card.prompt_guide?.examples ?? []));

/** @param {any} card @returns {Promise<import("./pictures.js").Picture[][]>} by subject; empty if there is no sheet of this model */
export async function trainingPictures(card) {
  const name = SHEETS[card.name];
  const subjects = subjectsOf(card);
  if (!name || !subjects.length) return [];
  const sheet = await decode(await (await request(`/playground/learn/examples/${name}`)).blob(), card.channels);
  const { width, height, channels } = card;
  if (sheet.width !== COLUMNS * width || sheet.height !== subjects.length * height) return [];
  return subjects.map((_, row) => Array.from({ length: COLUMNS }, (_, column) => cut(sheet, column * width, row * height, width, height, channels)));
}
