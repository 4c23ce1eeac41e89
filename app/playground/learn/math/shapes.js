/** Points to begin with in the plane, within −1.3 … 1.3. */

import { normalNumbers, uniformNumbers } from "./random.js";

const COUNT = 160;
const WORD_SIZE = { width: 96, height: 48 }; // pixels of the canvas in which a word is drawn

const jitter = (points, amount) => {
  const normal = normalNumbers(5);
  return points.map(([x, y]) => [x + amount * normal(), y + amount * normal()]);
};

/** Two half circles, each the points of one class: first all of the upper, then all of the lower. */
export function moons() {
  const half = COUNT / 2;
  const angles = Array.from({ length: half }, (_, i) => (Math.PI * i) / (half - 1));
  const upper = angles.map((angle) => [0.8 * Math.cos(angle) - 0.4, 0.8 * Math.sin(angle) - 0.2]);
  const lower = angles.map((angle) => [0.8 * Math.cos(angle) + 0.4, 0.2 - 0.8 * Math.sin(angle)]);
  return jitter([...upper, ...lower], 0.035);
}

export function spiral() {
  return jitter(Array.from({ length: COUNT }, (_, i) => {
    const turn = 0.6 + 3.1 * Math.sqrt(i / COUNT) * Math.PI;
    const radius = 0.115 * turn;
    return [radius * Math.cos(turn), radius * Math.sin(turn)];
  }), 0.02);
}

/** Points on the letters of a word. */
export function word(text) {
  const canvas = Object.assign(document.createElement("canvas"), WORD_SIZE);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.font = "bold 46px system-ui, sans-serif";
  [context.textAlign, context.textBaseline] = ["center", "middle"];
  context.fillText(text, WORD_SIZE.width / 2, WORD_SIZE.height / 2 + 2);
  const { data } = context.getImageData(0, 0, WORD_SIZE.width, WORD_SIZE.height);
  const inside = Array.from({ length: WORD_SIZE.width * WORD_SIZE.height }, (_, i) => i).filter((i) => data[4 * i + 3] > 128);
  const uniform = uniformNumbers(3);
  return Array.from({ length: COUNT }, () => {
    const pixel = inside[Math.floor(uniform() * inside.length)] ?? 0;
    return [(2.6 * (pixel % WORD_SIZE.width)) / WORD_SIZE.width - 1.3, 0.65 - (1.3 * Math.floor(pixel / WORD_SIZE.width)) / WORD_SIZE.height];
  });
}

export const PRESETS = { "Two moons": moons, Spiral: spiral, Word: () => word("hi!") };
