/** The ControlNets of a text model: a chip for each, and the control picture and the weight of those that are chosen. */

import { byId, el, setText } from "../shared/dom.js";
import { drawFitted, knownInput, readPicture, rememberInput } from "../shared/inputs.js";
import { parseNumber } from "./fields.js";

const DEFAULT_SCALE = 1;
const LARGEST = { bytes: 1_000_000, side: 1024 }; // of a control picture: four of them fit into a request of 8 MiB
const THUMBNAIL = 48; // pixels

export class Controls {
  /** @type {Control[]} */
  #rows = [];

  /** Offer the ControlNets of a model. Those that were chosen stay. @param {any} card */
  show(card) {
    const before = new Map(this.#rows.map((row) => [row.name, row]));
    this.#rows = (card.controls ?? []).map(({ name }) => before.get(name) ?? new Control(name));
    byId("controls-field").hidden = !this.#rows.length;
    byId("controls").replaceChildren(...this.#rows.map((row) => row.element));
  }

  /** Choose those of a job. Pictures that this tab did not send are named by their digest. @param {any[]} chosen */
  load(chosen) {
    for (const row of this.#rows) row.load(chosen.find(({ name }) => name === row.name) ?? null);
  }

  /** The request's field. */
  get value() {
    return this.#rows.filter((row) => row.isChosen).map((row) => row.request());
  }

  /** Remember what was sent with a job. @param {any} body @param {any} job */
  sent(body, job) {
    (body.controls ?? []).forEach(({ name }, k) => this.#rows.find((row) => row.name === name)?.sent(job.controls[k]));
  }
}

class Control {
  /** @type {{base64: string, file: Blob | null} | null} */
  #picture = null;
  #kept = {}; // start, end and guess mode of a job, which the form has no element for

  /** @param {string} name */
  constructor(name) {
    this.name = name;
    this.box = /** @type {HTMLInputElement} */ (el("input", { type: "checkbox", value: name, onchange: () => this.#showChosen() }));
    this.file = /** @type {HTMLInputElement} */ (el("input", { type: "file", accept: "image/png,image/jpeg,image/webp", "aria-label": `Control picture of ${name}`, hidden: true, onchange: () => this.#choose() }));
    this.button = el("button", { type: "button", class: "quiet", onclick: () => this.file.click() });
    this.thumbnail = /** @type {HTMLCanvasElement} */ (el("canvas", { width: THUMBNAIL, height: THUMBNAIL, role: "img", "aria-label": `The picture that ${name} follows`, hidden: true }));
    this.scale = /** @type {HTMLInputElement} */ (el("input", { type: "number", step: "any", min: 0, max: 4, value: DEFAULT_SCALE, "aria-label": `Weight of ${name}` }));
    this.facts = el("p", { class: "hint", role: "status" });
    this.details = el("div", { class: "control" }, this.thumbnail, this.button, this.file, el("label", { class: "weight" }, "Weight", this.scale), this.facts);
    this.element = el("div", {}, el("label", { class: "chip" }, this.box, el("span", {}, name)), this.details);
    this.#showPicture(null, "");
    this.#showChosen();
  }

  get isChosen() {
    return this.box.checked;
  }

  request() {
    const image = this.#picture ? { image: this.#picture.base64 } : {};
    return { name: this.name, ...image, scale: parseNumber(this.scale.value) ?? DEFAULT_SCALE, ...this.#kept };
  }

  /** @param {any} chosen of a job; null if it did not name this ControlNet */
  load(chosen) {
    this.box.checked = chosen !== null;
    this.#showChosen();
    if (!chosen) return;
    const { image, scale = DEFAULT_SCALE, start = 0, end = 1, guess_mode = false } = chosen;
    this.scale.value = String(scale);
    this.#kept = { ...(start ? { start } : {}), ...(end < 1 ? { end } : {}), ...(guess_mode ? { guess_mode } : {}) };
    const file = knownInput(image)?.file ?? null;
    this.#picture = knownInput(image) ?? { base64: image, file };
    this.#showPicture(null, file ? "the same picture" : "The server has this picture; this tab does not.");
    if (file) createImageBitmap(file).then((bitmap) => this.#showPicture(bitmap, "the same picture"));
  }

  /** @param {any} control of the job */
  sent(control) {
    if (this.#picture?.file) rememberInput(control?.image, { base64: this.#picture.base64, file: this.#picture.file });
  }

  async #choose() {
    const [file] = this.file.files ?? [];
    this.file.value = "";
    if (!file) return;
    setText(byId("controls-error"), "");
    try {
      const { bitmap, isReduced, ...picture } = await readPicture(file, LARGEST);
      [this.#picture, this.#kept] = [picture, {}];
      this.#showPicture(bitmap, isReduced ? `${file.name}, reduced to ${LARGEST.side} pixels` : file.name);
    } catch (error) {
      setText(byId("controls-error"), `${this.name}: ${file.name}: ${/** @type {Error} */ (error).message}`);
    }
  }

  #showChosen() {
    this.details.hidden = !this.isChosen;
  }

  /** @param {ImageBitmap | null} bitmap @param {string} text what it is */
  #showPicture(bitmap, text) {
    this.thumbnail.hidden = !bitmap;
    const context = this.thumbnail.getContext("2d");
    if (bitmap && context) drawFitted(context, bitmap, THUMBNAIL, THUMBNAIL);
    setText(this.button, this.#picture ? "Another picture …" : "Choose a control picture …");
    setText(this.facts, text);
  }
}
