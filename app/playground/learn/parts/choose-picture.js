/** A picture to work with: one of the examples or of the model, one that the visitor draws, or a file. */

import { el } from "../../shared/dom.js";
import { button } from "./controls.js";
import { fromSource, paint, picture } from "./pictures.js";
import { subjectsOf, trainingPictures } from "./training.js";

const BRUSH = 0.075; // of the width

/** @param {any} card @param {(picture: import("./pictures.js").Picture) => void} onchoose */
export function pictureChooser(card, onchoose) {
  const list = el("div", { class: "picks", role: "group", "aria-label": "Pictures" });
  const pad = drawingPad(card, (drawn) => { press(null); onchoose(drawn); });
  const file = /** @type {HTMLInputElement} */ (el("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "Picture file", onchange: async () => {
    if (!file.files?.length) return;
    const bitmap = await createImageBitmap(file.files[0]).catch(() => null);
    if (!bitmap) return;
    press(null);
    onchoose(fromSource(bitmap, card.width, card.height, card.channels));
  } }));
  const press = (pressed) => { for (const each of list.children) each.setAttribute("aria-pressed", String(each === pressed)); };

  const pick = (each, name) => {
    const canvas = el("canvas");
    paint(canvas, each);
    const element = el("button", { type: "button", class: "pick", "aria-label": name, "aria-pressed": "false", onclick: () => { press(element); onchoose(each); } }, canvas);
    return element;
  };

  trainingPictures(card).catch(() => []).then((classes) => {
    const offered = classes.length ? classes.map(([first], k) => [first, `Example: ${subjectsOf(card)[k]}`]) : [[disk(card), "A disk"]];
    list.append(...offered.map(([each, name]) => pick(each, name)));
    list.firstElementChild?.click();
  });
  const more = el("div", { class: "row" }, button("Draw", () => { pad.element.hidden = !pad.element.hidden; if (!pad.element.hidden) pad.clear(); }), button("Open a file …", () => file.click()), file);
  pad.element.hidden = true;
  return el("div", { class: "field" }, list, more, pad.element);
}

/** A canvas to draw on with white. */
function drawingPad({ width, height, channels }, ondraw) {
  const scale = Math.max(1, Math.round(280 / width));
  const canvas = /** @type {HTMLCanvasElement} */ (el("canvas", { class: "pad", width: width * scale, height: height * scale, "aria-label": "Draw here" }));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  let last = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  };
  const stroke = (to) => {
    context.beginPath();
    context.moveTo(...(last ?? to));
    context.lineTo(to[0] + 0.01, to[1]);
    context.stroke();
    last = to;
    ondraw(fromSource(canvas, width, height, channels));
  };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); last = null; stroke(at(event)); });
  canvas.addEventListener("pointermove", (event) => event.buttons && stroke(at(event)));
  const clear = () => {
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    Object.assign(context, { strokeStyle: "#fff", lineWidth: BRUSH * canvas.width, lineCap: "round" });
  };
  return { element: el("div", { class: "pad-box" }, canvas), clear };
}

/** A bright disk, for models without a sheet of examples. */
function disk({ width, height, channels }) {
  const inside = (i) => Math.hypot((i % width) - width / 2 + 0.5, Math.floor(i / width) - height / 2 + 0.5) < width / 3;
  return picture(width, height, channels, Float32Array.from({ length: width * height * channels }, (_, i) => (inside(Math.floor(i / channels)) ? 0.8 : -0.9)));
}
