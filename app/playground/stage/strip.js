/** The same seed over several steps, guidance scales or samplers, side by side under one scrubber. */

import { randomId, sleep } from "../shared/api.js";
import { TileCanvas } from "../shared/canvas.js";
import { announce, el, prefersReducedMotion, setText } from "../shared/dom.js";
import { picture } from "../shared/pictures.js";
import * as storage from "../shared/storage.js";
import { formatNumber, plural, samplerName } from "../shared/text.js";
import { requestOf } from "./snippets.js";

const STYLE = "/playground/stage/strip.css";
const MAX_FRAMES = 30; // per job
const PLAY_MS = 2600;
const TICK_MS = 60;
const AGAIN_MS = 1000; // between two tries during an outage
const SAMPLERS = ["ddim", "heun", "dpmpp_2m", "unipc_3", "euler_a", "ddpm"];
const LEVELS = ["spacing", "sigma_min", "sigma_max", "sigmas"]; // that some samplers do not take

/** What can be compared: the request's field, its values besides the job's own, and how one is called. */
const AXES = {
  steps: { field: "steps", values: (card) => [1, 2, 5, 10, 20, 50].filter((each) => each <= card.timesteps), text: (value) => plural(value, "step"), title: "over steps" },
  guidance: { field: "guidance_scale", values: () => [1, 2, 3, 5, 8], text: (value) => (value === 1 ? "no guidance" : `guidance ${formatNumber(value)}`), title: "over guidance" },
  samplers: { field: "sampler", values: (card) => SAMPLERS.filter((each) => card.samplers.includes(each)), text: samplerName, title: "over samplers" },
};

/** The requests of a comparison, one for each value. @param {any} job @param {any} card @param {keyof typeof AXES} axis @param {string[]} fields names of request fields */
export function requestsOf(job, card, axis, fields) {
  const { field, values } = AXES[axis];
  const own = job[field];
  const others = values(card).filter((each) => each !== own);
  const all = axis === "samplers" ? [own, ...others] : [own, ...others].sort((a, b) => a - b);
  return all.map((value) => {
    const body = { ...requestOf(job, fields), n: 1, [field]: value, preview: "both" };
    if (axis === "steps") delete body.sigmas;
    if (body.guidance_scale === 1) delete body.guidance_interval;
    if (card.spacing_samplers && !card.spacing_samplers.includes(body.sampler)) for (const name of LEVELS) delete body[name];
    if (!card.karras_samplers?.includes(body.sampler)) delete body.karras;
    if (!card.eta_samplers?.includes(body.sampler)) delete body.eta;
    return { ...body, preview_every: Math.max(1, Math.ceil(body.steps / MAX_FRAMES)) };
  });
}

export class Strip {
  /** @type {Panel[]} */
  #panels = [];
  #share = 1; // of the way from noise to picture
  #timer = 0;

  /** @param {HTMLElement} place @param {import("./actions.js").JobActions} actions */
  constructor(place, { jobs, server }) {
    document.head.append(el("link", { rel: "stylesheet", href: STYLE }));
    Object.assign(this, { place, jobs, server });
    this.title = el("h2", { id: "strip-title" });
    this.row = el("div", { class: "strip-row" });
    this.scrubber = el("input", { type: "range", min: 0, max: 100, value: 100, "aria-label": "From noise to picture", oninput: () => { this.#stop(); this.#moveTo(Number(this.scrubber.value) / 100); } });
    this.play = el("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: () => (this.#timer ? this.#stop() : this.#play()) }, "Play");
    this.error = el("p", { class: "error", role: "alert" });
    const kind = (value, text, checked) => el("label", { class: "chip" }, el("input", { type: "radio", name: "strip-kind", value, checked, onchange: () => this.#render() }), el("span", {}, ...text));
    const math = (letter, index) => el("i", { class: "math" }, letter, el("sub", {}, index));
    place.replaceChildren(
      el("header", {}, this.title, el("button", { type: "button", class: "quiet", onclick: () => this.close() }, "Close")),
      this.row,
      el("div", { class: "strip-controls" }, this.play, this.scrubber,
        el("div", { class: "chips small", role: "group", "aria-label": "What is shown" }, kind("x0", ["prediction ", math("x̂", "0")], true), kind("xt", ["noisy ", math("x", "t")], false))),
      this.error);
    jobs.addEventListener("change", () => this.#render());
  }

  /** Post the jobs of a comparison and show them. @param {any} job @param {string} axis */
  async compare(job, axis) {
    const card = this.server.models.find((model) => model.name === job.model);
    const { field, text, title } = AXES[axis];
    const bodies = requestsOf(job, card, axis, Object.keys(this.server.requestSchema));
    this.#open(`Seed ${job.seed} ${title}`, bodies.map((body) => new Panel(text(body[field]), body[field] === job[field])));
    this.place.scrollIntoView({ block: "nearest", behavior: prefersReducedMotion() ? "auto" : "smooth" });
    announce(`Comparing ${plural(bodies.length, "picture")}`);
    const panels = this.#panels;
    for (const [k, body] of bodies.entries()) {
      try {
        panels[k].entry = await this.#start(body, panels);
        if (this.#panels === panels) this.#save();
      } catch (error) {
        setText(this.error, `${panels[k].name}: ${error.fields?.[0]?.message ?? error.message}`);
      }
    }
    this.#render();
  }

  /** Post a job; during an outage, as soon as the server is back. */
  async #start(body, panels) {
    const key = randomId();
    for (;;) {
      try {
        return await this.jobs.start(body, key);
      } catch (error) {
        if (!error.isOutage || this.#panels !== panels) throw error;
        setText(this.error, `${error.message} The comparison goes on as soon as the server is back.`);
        await Promise.all([this.server.served(), sleep(AGAIN_MS)]);
        setText(this.error, "");
      }
    }
  }

  /** Show the comparison of before a reload. @param {storage.StoredStrip} stored */
  restore({ title, panels }) {
    this.#open(title, panels.map(({ name, isOwn }) => new Panel(name, isOwn)));
    for (const [k, { id }] of panels.entries()) {
      const entry = id && this.jobs.get(id);
      if (entry) this.jobs.reloadFrames(entry);
      else setText(this.#panels[k].state, "no longer on the server");
      this.#panels[k].entry = entry || null;
    }
    this.#render();
  }

  /** @param {string} title @param {Panel[]} panels */
  #open(title, panels) {
    setText(this.title, title);
    setText(this.error, "");
    this.#panels = panels;
    this.row.replaceChildren(...panels.map((panel) => panel.element));
    this.#moveTo(1);
    this.place.hidden = false;
  }

  #save() {
    const panels = this.#panels.map(({ name, isOwn, entry }) => ({ name, isOwn, id: entry?.job.id ?? null }));
    storage.saveStrip({ title: this.title.textContent ?? "", panels });
  }

  close() {
    this.#stop();
    storage.saveStrip(null);
    this.#panels = [];
    this.place.hidden = true;
  }

  #render() {
    if (this.place.hidden) return;
    const kind = this.place.querySelector("[name=strip-kind]:checked").value;
    const own = this.#panels.find((panel) => panel.isOwn);
    for (const panel of this.#panels) panel.render(this.#share, kind, own);
  }

  #moveTo(share) {
    this.#share = share;
    this.scrubber.value = String(Math.round(100 * share));
    this.scrubber.setAttribute("aria-valuetext", share === 1 ? "finished" : `${Math.round(100 * share)} % of the way`);
    this.#render();
  }

  #play() {
    this.play.setAttribute("aria-pressed", "true");
    setText(this.play, "Pause");
    if (this.#share === 1) this.#moveTo(0);
    const tick = prefersReducedMotion() ? 10 * TICK_MS : TICK_MS;
    this.#timer = setInterval(() => {
      this.#moveTo(Math.min(1, this.#share + tick / PLAY_MS));
      if (this.#share === 1) this.#stop();
    }, tick);
  }

  #stop() {
    clearInterval(this.#timer);
    this.#timer = 0;
    this.play.setAttribute("aria-pressed", "false");
    setText(this.play, "Play");
  }
}

/** One picture of the strip. */
class Panel {
  entry = /** @type {import("./jobs.js").Entry | null} */ (null);
  #drawnKey = "";
  #difference = /** @type {Promise<number> | null} */ (null);

  /** @param {string} name what differs @param {boolean} isOwn whether it has the value of the job that is compared */
  constructor(name, isOwn) {
    Object.assign(this, { name, isOwn });
    const canvas = /** @type {HTMLCanvasElement} */ (el("canvas", { width: 28, height: 28, role: "img", "aria-label": name }));
    this.tiles = new TileCanvas(canvas);
    this.state = el("small", {}, "waiting");
    this.element = el("figure", { class: isOwn ? "own" : null }, el("div", { class: "box" }, canvas), el("figcaption", {}, el("strong", {}, name), this.state));
  }

  render(share, kind, own) {
    const { entry } = this;
    if (!entry) return;
    const { frames, job, status } = entry;
    const count = frames.length + (status === "succeeded" ? 1 : 0);
    const place = Math.round(share * Math.max(0, count - 1));
    const key = `${place} ${kind} ${frames.blobs.size} ${status}`;
    if (key === this.#drawnKey) return;
    this.#drawnKey = key;
    if (status === "succeeded" && place === frames.length) picture(job.images[0]).then((blob) => this.#drawnKey === key && this.tiles.show([blob]), () => {});
    else if (frames.length) this.tiles.show(frames.pictures(kind, place, 1));
    this.#describe(own);
  }

  #describe(own) {
    const { job, status } = this.entry;
    if (status !== "succeeded") return setText(this.state, status === "running" ? `step ${job.progress.step} of ${job.progress.steps}` : status);
    const cost = plural(job.timing?.evaluations ?? job.progress.steps, "evaluation");
    setText(this.state, this.isOwn ? `${cost}, as chosen` : cost);
    if (this.isOwn) return;
    if (own?.entry?.status !== "succeeded") {
      this.#drawnKey = ""; // described again when there is something to compare with
      return;
    }
    this.#difference ??= meanDifference(job.images[0], own.entry.job.images[0]);
    this.#difference.then((share) => setText(this.state, share === 0 ? `${cost}, the same bytes` : `${cost}, differs by ${formatNumber(100 * share)} %`), () => {});
  }
}

/** The mean difference of the samples of two pictures, as a share of their range. */
async function meanDifference(one, other) {
  const [a, b] = await Promise.all([one, other].map(async (image) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
    const context = canvas.getContext("2d");
    context.drawImage(await createImageBitmap(await picture(image)), 0, 0);
    return context.getImageData(0, 0, image.width, image.height).data;
  }));
  const samples = (a.length * 3) / 4; // alpha is always 255
  return a.reduce((sum, value, i) => sum + Math.abs(value - b[i]), 0) / samples / 255;
}
