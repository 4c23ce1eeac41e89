/** A canvas that shows a job's images as a square of tiles. It draws at most once per animation frame. */

const GAP = 1; // between tiles, in pixels of the pictures
const QUESTION_MARK = [".###..", "#...#.", "....#.", "...#..", "..#...", "..#...", "..#...", "......", "..#..."];
const pending = new Set();
let scheduled = false;

function scheduleDraw(canvas) {
  pending.add(canvas);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const now = [...pending];
    pending.clear();
    for (const each of now) each.draw();
  });
}

export class TileCanvas {
  /** @type {(Blob | null)[]} */
  #pictures = [];
  #drawing = false;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
  }

  /** @param {(Blob | null)[]} pictures one per image; a null tile stays dark */
  show(pictures) {
    this.#pictures = pictures;
    scheduleDraw(this);
  }

  /** Gaussian noise as a placeholder for x_T: the same seed gives the same noise. */
  noise(seed, [width, height], count = 1) {
    this.#pictures = [];
    const context = this.#resized(count, width, height);
    for (let i = 0; i < count; i += 1) context.putImageData(gaussianNoise(context, seed + i, width, height), ...this.#corner(i, count, width, height));
  }

  /** Gray: there is nothing to show. */
  blank() {
    this.#pictures = [];
    const context = this.#resized(1, 28, 28);
    context.fillStyle = "#808080";
    context.fillRect(0, 0, 28, 28);
  }

  /** A question mark: there is no prediction yet. */
  questionMark() {
    this.#pictures = [];
    const context = this.#resized(1, 28, 28);
    context.fillStyle = "#4a433d";
    QUESTION_MARK.forEach((row, y) => [...row].forEach((cell, x) => cell === "#" && context.fillRect(9 + 2 * x, 5 + 2 * y, 2, 2)));
  }

  async draw() {
    if (this.#drawing) return; // the running draw schedules another one
    this.#drawing = true;
    const pictures = this.#pictures;
    const tiles = await Promise.all(pictures.map((picture) => (picture ? createImageBitmap(picture).catch(() => null) : null)));
    this.#drawing = false;
    if (this.#pictures.length) this.#paint(tiles);
    for (const tile of tiles) tile?.close();
    if (this.#pictures !== pictures && this.#pictures.length) scheduleDraw(this);
  }

  #paint(tiles) {
    const first = tiles.find((tile) => tile);
    if (!first) return;
    const context = this.#resized(tiles.length, first.width, first.height);
    tiles.forEach((tile, i) => tile && context.drawImage(tile, ...this.#corner(i, tiles.length, first.width, first.height)));
  }

  /** The cleared canvas, resized to hold `count` tiles in a square. */
  #resized(count, width, height) {
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

/** The number of columns of `count` tiles. */
export const columnsOf = (count) => Math.ceil(Math.sqrt(count));

/** Gray pixels with a normal distribution. */
function gaussianNoise(context, seed, width, height) {
  const image = context.createImageData(width, height);
  const random = randomNumbers(seed);
  for (let i = 0; i < width * height; i += 1) {
    const value = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    image.data.set([...Array(3).fill(127.5 + 127.5 * value), 255], 4 * i);
  }
  return image;
}

/** A generator of uniform numbers in [0, 1) from a seed (mulberry32). */
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
