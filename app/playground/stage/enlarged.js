/** One picture of a finished job in a dialog: large, with its own seed, and in comparison with the picture that it started from. */

import { el, setText } from "../shared/dom.js";
import { drawFitted, knownInput } from "../shared/inputs.js";
import { picture, save } from "../shared/pictures.js";
import { titleOf } from "../shared/text.js";
import { fileName } from "./snippets.js";

const STYLE = "/playground/stage/enlarged.css";
const HALF = 50; // percent

export class Enlarged {
  #index = 0;

  /** @param {import("./jobs.js").Entry} entry @param {import("./actions.js").JobActions} actions */
  constructor(entry, actions) {
    Object.assign(this, { entry, actions });
    if (!document.querySelector(`link[href="${STYLE}"]`)) document.head.append(el("link", { rel: "stylesheet", href: STYLE }));
    this.after = canvas({ role: "img" });
    this.before = canvas({ class: "before", role: "img", "aria-label": "The start picture", hidden: true });
    this.box = el("div", { class: "box" }, this.after, this.before);
    this.slider = this.#slider();
    this.name = el("p", { class: "name" });
    this.dialog = el("dialog", { class: "enlarged" }, this.box, this.slider, this.name, el("div", { class: "actions" }, ...this.#buttons()));
    this.dialog.addEventListener("close", () => this.dialog.remove());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => this.#turn(event));
  }

  /** @param {number} index of the picture */
  async show(index) {
    const { job } = this.entry;
    this.#index = index;
    const image = job.images[index];
    const name = `${titleOf(job)}, seed ${image.seed}${job.n > 1 ? ` (${index + 1} of ${job.n})` : ""}`;
    setText(this.name, name);
    this.dialog.setAttribute("aria-label", name);
    this.after.setAttribute("aria-label", name);
    if (!this.dialog.isConnected) document.body.append(this.dialog);
    if (!this.dialog.open) this.dialog.showModal();
    try {
      draw(this.after, await createImageBitmap(await picture(image)), image);
      await this.#compare(image);
    } catch {
      this.dialog.close();
    }
  }

  /** Lay the start picture over the finished one, if this browser has it. */
  async #compare(image) {
    const file = await startPicture(this.entry.job, this.actions.jobs);
    for (const each of [this.before, this.slider]) each.hidden = !file;
    if (file) draw(this.before, await createImageBitmap(file), image);
  }

  #slider() {
    const input = el("input", { type: "range", min: 0, max: 100, value: HALF, "aria-label": "Before and after" });
    const set = () => {
      this.box.style.setProperty("--before", `${input.value}%`);
      input.setAttribute("aria-valuetext", `${input.value} % before, ${100 - Number(input.value)} % after`);
    };
    input.addEventListener("input", set);
    this.box.addEventListener("pointermove", (event) => {
      if (!event.buttons || this.before.hidden) return;
      const { left, width } = this.box.getBoundingClientRect();
      input.value = String(Math.round((100 * (event.clientX - left)) / width));
      set();
    });
    set();
    return el("div", { class: "before-after", hidden: true }, el("span", { "aria-hidden": "true" }, "Before"), input, el("span", { "aria-hidden": "true" }, "After"));
  }

  #buttons() {
    const { entry, actions } = this;
    const one = () => ({ ...entry, job: { ...entry.job, n: 1, seed: entry.job.images[this.#index].seed } });
    const button = (text, action, title = null) => el("button", { type: "button", title, onclick: action }, text);
    const closing = (action) => () => { this.dialog.close(); action(); };
    return [
      button("Download", async () => save(await picture(entry.job.images[this.#index]), fileName(entry.job, this.#index))),
      button("Vary", closing(() => actions.vary(one())), "The same request with neighboring seeds"),
      entry.job.n > 1 && button("Alone", closing(() => actions.repeat(one())), "Generate this picture alone"),
      actions.form.picture.isTaken && button("Start from it", closing(() => actions.startFrom(entry, this.#index)), "Use this picture as the start of the next"),
      ...(entry.job.n > 1 ? [button("Previous", () => this.#move(-1)), button("Next", () => this.#move(1))] : []),
      button("Close", () => this.dialog.close()),
    ].filter(Boolean);
  }

  #turn(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target.matches("input")) return;
    event.preventDefault();
    this.#move(step);
  }

  #move(step) {
    const { n } = this.entry.job;
    if (n > 1) this.show((this.#index + step + n) % n);
  }
}

/** The picture that a job started from: sent by this tab, or made by another of its jobs; null if neither. @returns {Promise<Blob | null>} */
async function startPicture(job, jobs) {
  if (!job.image) return null;
  const known = knownInput(job.image);
  if (known) return known.file;
  const digest = job.image.replace("sha256:", "");
  const made = jobs.all.flatMap((entry) => entry.job.images ?? []).find((image) => image.sha256 === digest);
  return made ? picture(made).catch(() => null) : null;
}

const canvas = (attributes) => /** @type {HTMLCanvasElement} */ (el("canvas", attributes));

function draw(target, bitmap, { width, height }) {
  [target.width, target.height] = [width, height];
  drawFitted(target.getContext("2d"), bitmap, width, height);
}
