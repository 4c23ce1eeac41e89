/** The editor of a start picture: what the model sees of it, how far to go from it, and a mask that is painted over it. */

import { el, setText } from "../shared/dom.js";
import { drawFitted } from "../shared/inputs.js";
import { Mask } from "./mask.js";
import { DEFAULT_STRENGTH } from "./start-picture.js";

const STYLE = "/playground/form/picture.css";
const MAX_REM = 22; // the height of the picture on the page
const BRUSHES = 40; // sizes, up to half of the picture's width
const PAINT = [255, 110, 60, 255];
const SIDES = ["left", "top", "width", "height"];
const EDGES = ["left", "right", "top", "bottom"];

export class PictureEditor {
  #mask = new Mask(1, 1);
  #bitmap = /** @type {ImageBitmap | null} */ (null);
  #maskText = /** @type {string | null} */ (null); // of a job whose mask was not changed
  #last = /** @type {[number, number] | null} */ (null); // where the brush was

  /** @param {HTMLElement} place @param {{remove: () => void, extend: (added: any) => void}} on what the buttons do */
  constructor(place, on) {
    document.head.append(el("link", { rel: "stylesheet", href: STYLE }));
    this.place = place;
    this.picture = canvas({ role: "img", "aria-label": "The start picture, as the model sees it" });
    this.overlay = canvas({ class: "overlay", "aria-hidden": "true" });
    this.facts = el("p", { class: "hint" });
    this.slider = slider("strength", "Strength", { min: 0, max: 1, step: 0.05, value: DEFAULT_STRENGTH }, "How far to go from the picture: 0 keeps it, 1 starts from noise alone.");
    this.tools = this.#tools(on.extend);
    this.box = el("div", { class: "box" }, this.picture, this.overlay);
    this.element = el("div", { class: "editor" }, this.box, el("div", { class: "editor-row" }, this.facts, el("button", { type: "button", class: "link", onclick: on.remove }, "Remove")), this.slider, this.tools);
    this.#paintByPointer();
  }

  /** Edit a picture; null for one that only the server has. @param {ImageBitmap | null} bitmap @param {string} text what it is */
  open(bitmap, text) {
    this.#bitmap = bitmap;
    this.#change(() => this.#mask.clear(), { remember: false });
    setText(this.facts, text);
    this.box.hidden = !bitmap;
    if (!this.element.isConnected) this.place.append(this.element);
  }

  close() {
    this.element.remove();
  }

  /** Fit the picture into a size, and show what the model takes. @param {{size: [number, number], masks: boolean, strength: boolean}} card */
  show({ size: [width, height], masks, strength }) {
    this.slider.hidden = !strength;
    this.tools.hidden = !masks || !this.#bitmap;
    this.overlay.hidden = !masks;
    if (width !== this.#mask.width || height !== this.#mask.height) this.#mask = this.#mask.resized(width, height);
    Object.assign(this.box.style, { aspectRatio: `${width} / ${height}`, width: `min(100%, ${(MAX_REM * width) / height}rem)` });
    [this.picture.width, this.picture.height] = [width, height];
    if (this.#bitmap) drawFitted(this.picture.getContext("2d"), this.#bitmap, width, height);
    this.#draw();
  }

  /** Set the mask and the strength of a job. @param {{mask: ImageBitmap | null, maskText: string | null, strength: number}} job */
  load({ mask, maskText, strength }) {
    const input = this.slider.querySelector("input");
    input.value = String(strength);
    input.dispatchEvent(new Event("input"));
    if (mask) this.#change(() => { this.#mask.pixels = brightPixels(mask, this.#mask.width, this.#mask.height); });
    this.#maskText = maskText;
    if (maskText && !mask) setText(this.status, "The job's mask is kept: only the server has it.");
  }

  get strength() {
    return Number(this.slider.querySelector("input").value);
  }

  /** The mask as a PNG in base64: white where the picture is made anew; null without one. */
  mask() {
    if (this.#maskText) return this.#maskText;
    if (!this.#mask.share) return null;
    const { width, height, pixels } = this.#mask;
    const drawing = canvas({ width, height });
    paint(drawing, pixels, [255, 255, 255, 255], [0, 0, 0, 255]);
    return drawing.toDataURL("image/png").replace(/^[^,]*,/, "");
  }

  /** Paint everything but a part of the picture, which was extended. @param {[number, number, number, number]} kept */
  markAround(kept) {
    this.#change(() => {
      this.#mask.rectangle(0, 0, this.#mask.width, this.#mask.height, 1);
      this.#mask.rectangle(...kept, 0);
    });
  }

  #tools(onExtend) {
    const mode = (value, text, checked) => el("label", { class: "chip" }, el("input", { type: "radio", name: "brush-mode", value, checked }), el("span", {}, text));
    const button = (text, action) => el("button", { type: "button", class: "quiet", onclick: action }, text);
    this.brush = slider("brush", "Brush size", { min: 1, max: BRUSHES, step: 1, value: 8 }, null);
    this.undo = button("Undo", () => { this.#mask.undo(); this.#draw(); });
    this.status = el("p", { class: "hint", role: "status" });
    return el("fieldset", { class: "mask-tools" }, el("legend", {}, "Paint what is made anew"),
      el("div", { class: "editor-row" }, el("div", { class: "chips small" }, mode("1", "Paint", true), mode("0", "Erase", false)),
        el("div", { class: "editor-buttons" }, this.undo, button("Invert", () => this.#change(() => this.#mask.invert())), button("Clear", () => this.#change(() => this.#mask.clear())))),
      this.brush, this.status, this.#rectangle(), this.#extension(onExtend));
  }

  /** Four numbers and two buttons: the mask without a pointer. */
  #rectangle() {
    const inputs = SIDES.map((side) => el("input", { type: "number", min: 0, id: `rectangle-${side}`, value: 0 }));
    const set = (value) => this.#change(() => {
      const [left, top, width, height] = inputs.map((input) => Math.max(0, Math.round(Number(input.value) || 0)));
      this.#mask.rectangle(left, top, width, height, value);
    });
    return el("details", { class: "rectangle" }, el("summary", {}, "Paint a rectangle by numbers"),
      el("div", { class: "rectangle-sides" }, ...SIDES.map((side, k) => el("label", {}, side.charAt(0).toUpperCase() + side.slice(1), inputs[k]))),
      el("div", { class: "editor-buttons" }, el("button", { type: "button", class: "quiet", onclick: () => set(1) }, "Paint rectangle"), el("button", { type: "button", class: "quiet", onclick: () => set(0) }, "Erase rectangle")));
  }

  /** Four shares and a button: the picture on a larger canvas, whose new parts are painted. */
  #extension(onExtend) {
    const inputs = EDGES.map((edge) => el("input", { type: "number", min: 0, max: 200, step: 5, id: `extend-${edge}`, value: 25 }));
    const added = () => Object.fromEntries(EDGES.map((edge, k) => [edge, Math.min(2, Math.max(0, Number(inputs[k].value) / 100 || 0))]));
    return el("details", { class: "rectangle" }, el("summary", {}, "Extend the picture beyond its edges"),
      el("div", { class: "rectangle-sides" }, ...EDGES.map((edge, k) => el("label", {}, `${edge.charAt(0).toUpperCase()}${edge.slice(1)} %`, inputs[k]))),
      el("div", { class: "editor-buttons" }, el("button", { type: "button", class: "quiet", onclick: () => onExtend(added()) }, "Extend")));
  }

  #paintByPointer() {
    const at = (event) => {
      const box = this.overlay.getBoundingClientRect();
      return /** @type {[number, number]} */ ([((event.clientX - box.left) / box.width) * this.#mask.width, ((event.clientY - box.top) / box.height) * this.#mask.height]);
    };
    const stroke = (event) => {
      const to = at(event);
      this.#mask.stroke(this.#last ?? to, to, this.#diameter, Number(this.tools.querySelector("[name=brush-mode]:checked").value) ? 1 : 0);
      this.#last = to;
      this.#draw();
    };
    this.overlay.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      this.overlay.setPointerCapture(event.pointerId);
      this.#last = null;
      this.#change(() => stroke(event));
    });
    this.overlay.addEventListener("pointermove", (event) => event.buttons && this.#last && stroke(event));
    for (const type of ["pointerup", "pointercancel"]) this.overlay.addEventListener(type, () => { this.#last = null; });
  }

  /** Of the brush, in pixels of the picture. */
  get #diameter() {
    return (Number(this.brush.querySelector("input").value) / BRUSHES) * 0.5 * this.#mask.width;
  }

  #change(action, { remember = true } = {}) {
    if (remember) this.#mask.remember();
    this.#maskText = null;
    action();
    this.#draw();
  }

  #draw() {
    const { width, height, pixels, share, canUndo } = this.#mask;
    if (this.overlay.width !== width || this.overlay.height !== height) [this.overlay.width, this.overlay.height] = [width, height];
    paint(this.overlay, pixels, PAINT, [0, 0, 0, 0]);
    this.undo.disabled = !canUndo;
    setText(this.status, share ? `${percent(share)} of the picture is made anew, the rest is kept.` : "Nothing is painted: the whole picture is made anew.");
  }
}

const percent = (share) => (share < 0.01 ? "Less than 1 %" : `${Math.round(100 * share)} %`);
const canvas = (attributes) => /** @type {HTMLCanvasElement} */ (el("canvas", attributes));

/** A slider with a label, its value and an optional hint. */
function slider(id, title, attributes, hint) {
  const output = el("output", { id: `${id}-value`, for: id }, String(attributes.value));
  const input = el("input", { type: "range", id, "aria-describedby": `${id}-hint ${id}-error`, ...attributes, oninput: () => setText(output, input.value) });
  return el("div", { class: "field" }, el("label", { for: id }, title), el("div", { class: "with-value" }, input, output),
    hint && el("p", { class: "hint", id: `${id}-hint` }, hint), el("p", { class: "error", id: `${id}-error` }));
}

/** Color the pixels of a mask. @param {HTMLCanvasElement} target @param {Uint8Array} pixels @param {number[]} painted @param {number[]} kept RGBA */
function paint(target, pixels, painted, kept) {
  const context = target.getContext("2d");
  const image = context.createImageData(target.width, target.height);
  pixels.forEach((value, i) => image.data.set(value ? painted : kept, 4 * i));
  context.putImageData(image, 0, 0);
}

/** 1 for the pixels of a picture that are brighter than half. */
function brightPixels(bitmap, width, height) {
  const drawing = canvas({ width, height });
  const context = drawing.getContext("2d");
  drawFitted(context, bitmap, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return Uint8Array.from({ length: width * height }, (_, i) => (data[4 * i] > 127 ? 1 : 0));
}
