/** The plane of pictures with two pixels: the density at a noise level, score arrows, points, and balls with their ways. */

import { el, prefersReducedMotion } from "../../shared/dom.js";

const RANGE = 2.4; // the plane shows −RANGE … RANGE
const CELLS = 80; // of the density, along each side
const ARROWS = 17; // along each side
const SIZE = 560; // CSS pixels at most
const KEY_STEP = 0.12; // how far an arrow key moves the cross
const RAMP = [[11, 10, 10], [70, 22, 12], [178, 62, 22], [255, 146, 92], [255, 233, 214]];

/** @typedef {{at: [number, number], way?: [number, number][], color?: string}} Ball */

export class Plane {
  /** @type {import("../math/mixture.js").Mixture | null} */
  mixture = null;
  /** @type {import("../math/schedule.js").Level} */
  level = { t: 0, alpha: 1, sigma: 0.05 };
  /** @type {Ball[]} */
  balls = [];
  /** @type {[number, number][]} */
  points = [];
  shows = { density: true, arrows: true, points: true };
  /** @type {{from: [number, number], to: [number, number]}[]} */
  moves = [];
  #scheduled = false;
  #cross = /** @type {[number, number]} */ ([0, 0]);

  /** @param {{name: string, onpoint?: (point: [number, number], drag: boolean) => void, onhover?: (point: [number, number]) => void}} options */
  constructor({ name, onpoint = undefined, onhover = undefined }) {
    const interactive = Boolean(onpoint);
    this.canvas = /** @type {HTMLCanvasElement} */ (el("canvas", { class: "plane", width: SIZE, height: SIZE, role: interactive ? "application" : "img", tabindex: interactive ? 0 : null, "aria-label": name }));
    if (onpoint) this.#listen(onpoint);
    if (onhover) this.canvas.addEventListener("pointermove", (event) => onhover(this.#pointOf(event)));
    this.element = el("div", { class: "plane-box" }, this.canvas);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /** Redraw at the next animation frame. */
  draw() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#paint();
    });
  }

  #listen(onpoint) {
    let drawing = false;
    this.canvas.addEventListener("pointerdown", (event) => {
      drawing = true;
      this.canvas.setPointerCapture(event.pointerId);
      onpoint(this.#pointOf(event), false);
    });
    this.canvas.addEventListener("pointermove", (event) => drawing && onpoint(this.#pointOf(event), true));
    for (const type of ["pointerup", "pointercancel"]) this.canvas.addEventListener(type, () => { drawing = false; });
    this.canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!move && event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      if (move) this.#cross = /** @type {[number, number]} */ (this.#cross.map((each, i) => Math.max(-RANGE, Math.min(RANGE, each + KEY_STEP * move[i]))));
      else onpoint(this.#cross, false);
      this.draw();
    });
    for (const type of ["focus", "blur"]) this.canvas.addEventListener(type, () => this.draw());
  }

  #pointOf(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return /** @type {[number, number]} */ ([RANGE * (2 * (event.clientX - left) / width - 1), RANGE * (1 - 2 * (event.clientY - top) / height)]);
  }

  #paint() {
    const width = Math.min(SIZE, this.canvas.clientWidth) || SIZE;
    const ratio = Math.min(2, devicePixelRatio || 1);
    const size = Math.round(width * ratio);
    if (this.canvas.width !== size) [this.canvas.width, this.canvas.height] = [size, size];
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    context.setTransform(size, 0, 0, size, 0, 0); // the plane is 1 wide from here on
    context.fillStyle = `rgb(${RAMP[0]})`;
    context.fillRect(0, 0, 1, 1);
    if (this.mixture && this.shows.density) this.#density(context);
    if (this.mixture && this.shows.arrows) this.#arrows(context);
    if (this.shows.points) this.#dots(context, this.points.map(([x, y]) => [this.level.alpha * x, this.level.alpha * y]), 0.0055, "rgb(255 255 255 / 85%)");
    this.#moves(context);
    this.#balls(context);
    if (document.activeElement === this.canvas && this.canvas.matches(":focus-visible")) this.#drawCross(context);
  }

  #density(context) {
    const logs = this.mixture.logDensities(CELLS, RANGE, this.level);
    const highest = logs.reduce((a, b) => Math.max(a, b), -Infinity);
    const small = Object.assign(document.createElement("canvas"), { width: CELLS, height: CELLS });
    const pen = small.getContext("2d");
    const image = pen.createImageData(CELLS, CELLS);
    logs.forEach((log, i) => image.data.set([...ramp(Math.exp(log - highest) ** 0.55), 255], 4 * i));
    pen.putImageData(image, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, 1, 1);
  }

  /** Arrows along the score; long ones are shortened, because the score grows with the distance. */
  #arrows(context) {
    context.strokeStyle = "rgb(255 236 220 / 62%)";
    context.lineWidth = 0.0026;
    context.beginPath();
    for (let i = 0; i < ARROWS * ARROWS; i += 1) {
      const x = RANGE * ((2 * ((i % ARROWS) + 0.5)) / ARROWS - 1);
      const y = RANGE * (1 - (2 * (Math.floor(i / ARROWS) + 0.5)) / ARROWS);
      const { epsilon } = this.mixture.at(x, y, this.level); // = −σ·score
      const length = Math.hypot(...epsilon);
      const scale = (0.62 * RANGE * Math.min(1, length / 2)) / ARROWS / (length || 1);
      arrow(context, this.#place([x, y]), this.#place([x - 2 * scale * epsilon[0], y - 2 * scale * epsilon[1]]), 0.011);
    }
    context.stroke();
  }

  #moves(context) {
    context.strokeStyle = "rgb(120 208 255 / 75%)";
    context.lineWidth = 0.0028;
    context.beginPath();
    for (const { from, to } of this.moves) arrow(context, this.#place(from), this.#place(to), 0.012);
    context.stroke();
  }

  #balls(context) {
    context.lineWidth = 0.0035;
    for (const { way = [], color = "#7cd4ff" } of this.balls) {
      if (way.length < 2) continue;
      context.strokeStyle = color;
      context.globalAlpha = 0.5;
      context.beginPath();
      way.forEach((point, i) => context[i ? "lineTo" : "moveTo"](...this.#place(point)));
      context.stroke();
      context.globalAlpha = 1;
    }
    for (const { at, color = "#7cd4ff" } of this.balls) this.#dots(context, [at], 0.0125, color);
  }

  #dots(context, points, radius, color) {
    context.fillStyle = color;
    context.beginPath();
    for (const point of points) {
      const [x, y] = this.#place(point);
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 2 * Math.PI);
    }
    context.fill();
  }

  #drawCross(context) {
    const [x, y] = this.#place(this.#cross);
    context.strokeStyle = "#fff";
    context.lineWidth = 0.004;
    context.beginPath();
    context.moveTo(x - 0.03, y); context.lineTo(x + 0.03, y);
    context.moveTo(x, y - 0.03); context.lineTo(x, y + 0.03);
    context.stroke();
  }

  /** A point as a place on the canvas, which is 1 wide. */
  #place([x, y]) {
    return /** @type {[number, number]} */ ([(x / RANGE + 1) / 2, (1 - y / RANGE) / 2]);
  }
}

function arrow(context, [x, y], [toX, toY], head) {
  const angle = Math.atan2(toY - y, toX - x);
  context.moveTo(x, y);
  context.lineTo(toX, toY);
  for (const side of [2.6, -2.6]) {
    context.moveTo(toX, toY);
    context.lineTo(toX + head * Math.cos(angle + side), toY + head * Math.sin(angle + side));
  }
}

function ramp(share) {
  const place = Math.min(share, 0.9999) * (RAMP.length - 1);
  const [low, high] = [RAMP[Math.floor(place)], RAMP[Math.floor(place) + 1]];
  return low.map((each, c) => each + (place % 1) * (high[c] - each));
}

/**
 * Call `step(k)` for k = 0 … count − 1, one per animation frame or more; all at once under reduced motion.
 * @param {number} count @param {number} ms in all @param {(k: number) => void} step @param {AbortSignal} signal
 */
export function animate(count, ms, step, signal) {
  if (prefersReducedMotion()) {
    for (let k = 0; k < count; k += 1) step(k);
    return Promise.resolve();
  }
  return new Promise((resolve) => {
    const begin = performance.now();
    let done = 0;
    const tick = (now) => {
      if (signal.aborted) return resolve(undefined);
      const due = Math.min(count, Math.ceil((count * Math.max(1, now - begin)) / ms));
      for (; done < due; done += 1) step(done);
      return done < count ? requestAnimationFrame(tick) : resolve(undefined);
    };
    requestAnimationFrame(tick);
  });
}
