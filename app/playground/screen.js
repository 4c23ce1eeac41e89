/** A canvas that shows the images of a job as a square of tiles. However often it is told, it draws once a frame. */

const GAP = 1; // picture's own pixels between tiles
const QUESTION = [".###..", "#...#.", "....#.", "...#..", "..#...", "..#...", "..#...", "......", "..#..."];
const waiting = new Set();
let asked = false;

function drawSoon(screen) {
  waiting.add(screen);
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    const now = [...waiting];
    waiting.clear();
    for (const each of now) each.draw();
  });
}

export class Screen {
  /** @type {(Blob | null)[]} */
  #wanted = [];
  #busy = false;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
  }

  /** @param {(Blob | null)[]} pictures one an image; null is left dark */
  show(pictures) {
    this.#wanted = pictures;
    drawSoon(this);
  }

  /** Noise of the kind that every picture starts with, until its own comes: the same for the same seed. */
  noise(seed, [width, height], count = 1) {
    this.#wanted = [];
    const context = this.#sized(count, width, height);
    for (let i = 0; i < count; i += 1) context.putImageData(normal(context, seed + i, width, height), ...this.#corner(i, count, width, height));
  }

  /** A question mark: nothing is believed yet. */
  riddle() {
    this.#wanted = [];
    const context = this.#sized(1, 28, 28);
    context.fillStyle = "#4a433d";
    QUESTION.forEach((row, y) => [...row].forEach((cell, x) => cell === "#" && context.fillRect(9 + 2 * x, 5 + 2 * y, 2, 2)));
  }

  async draw() {
    if (this.#busy) return; // drawn again below
    this.#busy = true;
    const pictures = this.#wanted;
    const tiles = await Promise.all(pictures.map((picture) => (picture ? createImageBitmap(picture).catch(() => null) : null)));
    this.#busy = false;
    if (this.#wanted.length) this.#paint(tiles);
    for (const tile of tiles) tile?.close();
    if (this.#wanted !== pictures && this.#wanted.length) drawSoon(this);
  }

  #paint(tiles) {
    const first = tiles.find((tile) => tile);
    if (!first) return;
    const context = this.#sized(tiles.length, first.width, first.height);
    tiles.forEach((tile, i) => tile && context.drawImage(tile, ...this.#corner(i, tiles.length, first.width, first.height)));
  }

  /** The canvas, as large as so many tiles are in a square, and empty. */
  #sized(count, width, height) {
    const columns = columnsOf(count);
    const rows = Math.ceil(count / columns);
    const size = [columns * (width + GAP) - GAP, rows * (height + GAP) - GAP];
    if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) [this.canvas.width, this.canvas.height] = size;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, ...size);
    return context;
  }

  #corner(i, count, width, height) {
    const columns = columnsOf(count);
    return [(i % columns) * (width + GAP), Math.floor(i / columns) * (height + GAP)];
  }
}

const columnsOf = (count) => Math.ceil(Math.sqrt(count));

/** Grey, normally distributed pixels. */
function normal(context, seed, width, height) {
  const image = context.createImageData(width, height);
  const random = numbers(seed);
  for (let i = 0; i < width * height; i += 1) {
    const value = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    image.data.set([...Array(3).fill(127.5 + 127.5 * value), 255], 4 * i);
  }
  return image;
}

/** Numbers in [0, 1) from a seed (mulberry32). */
function numbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
