/** Which pixels of a picture are made anew: painted with a brush, by rectangles, or inverted. Knows no canvas. */

const MAX_UNDO = 20;

export class Mask {
  /** @type {Uint8Array[]} */
  #before = [];

  /** @param {number} width @param {number} height in pixels */
  constructor(width, height) {
    [this.width, this.height] = [width, height];
    this.pixels = new Uint8Array(width * height); // row by row; 1 = made anew, 0 = kept
  }

  /** The share of the picture that is made anew, 0 … 1. */
  get share() {
    return this.pixels.reduce((sum, each) => sum + each, 0) / this.pixels.length;
  }

  get canUndo() {
    return this.#before.length > 0;
  }

  /** Remember the present state, for `undo`. Call it before each change that the visitor makes. */
  remember() {
    this.#before.push(this.pixels.slice());
    if (this.#before.length > MAX_UNDO) this.#before.shift();
  }

  undo() {
    this.pixels = this.#before.pop() ?? this.pixels;
  }

  clear() {
    this.pixels.fill(0);
  }

  invert() {
    this.pixels = this.pixels.map((each) => 1 - each);
  }

  /**
   * Set the pixels whose centers are within a brush that moves in a straight line; always at least the nearest pixel.
   * @param {[number, number]} from @param {[number, number]} to x and y in pixels @param {number} diameter @param {0 | 1} value
   */
  stroke(from, to, diameter, value) {
    const radius = diameter / 2;
    const [left, right] = [Math.min(from[0], to[0]) - radius, Math.max(from[0], to[0]) + radius];
    const [top, bottom] = [Math.min(from[1], to[1]) - radius, Math.max(from[1], to[1]) + radius];
    for (let y = Math.max(0, Math.floor(top)); y < Math.min(this.height, Math.ceil(bottom)); y += 1) {
      for (let x = Math.max(0, Math.floor(left)); x < Math.min(this.width, Math.ceil(right)); x += 1) {
        if (distance([x + 0.5, y + 0.5], from, to) <= radius) this.pixels[y * this.width + x] = value;
      }
    }
    const [x, y] = to.map(Math.floor);
    if (x >= 0 && x < this.width && y >= 0 && y < this.height) this.pixels[y * this.width + x] = value;
  }

  /** Set a rectangle, as far as it is inside of the picture. @param {0 | 1} value */
  rectangle(left, top, width, height, value) {
    for (let y = Math.max(0, top); y < Math.min(this.height, top + height); y += 1) {
      for (let x = Math.max(0, left); x < Math.min(this.width, left + width); x += 1) this.pixels[y * this.width + x] = value;
    }
  }

  /** The same mask at another size, by the nearest pixel. @returns {Mask} */
  resized(width, height) {
    const mask = new Mask(width, height);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) mask.pixels[y * width + x] = this.pixels[Math.floor((y * this.height) / height) * this.width + Math.floor((x * this.width) / width)];
    }
    return mask;
  }
}

/** The distance of a point from a line segment. */
function distance([x, y], [fromX, fromY], [toX, toY]) {
  const [dx, dy] = [toX - fromX, toY - fromY];
  const share = dx || dy ? Math.max(0, Math.min(1, ((x - fromX) * dx + (y - fromY) * dy) / (dx * dx + dy * dy))) : 0;
  return Math.hypot(x - fromX - share * dx, y - fromY - share * dy);
}
