/** What is to be generated: the form, made from the cards of the models that are served. */

import { byId, el, say } from "./dom.js";
import { randomName, sentence } from "./api.js";
import * as shelf from "./shelf.js";

const MAX_SEED = Number.MAX_SAFE_INTEGER;
const FRAMES = 60; // of a film, at most
const CHIPS = 40; // labels that are shown as chips; more go into a list that is searched by typing
const SAME_PRESS = 800; // ms in which a second press is the first one's double
const RANGES = ["n", "guidance_scale", "eta"];

export class Form {
  /** @type {any[]} */
  #models = [];
  #pressed = { at: -Infinity, body: /** @type {any} */ (null), key: "" };
  #seedUsed = false;
  #busy = false;

  /** Called when another seed, or a model with pictures of another size, is chosen. */
  onNoise = () => {};

  /** @param {(body: any, key: string) => Promise<void>} submit */
  constructor(submit) {
    this.form = byId("form");
    this.submit = submit;
    this.choice = shelf.choice();
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.press();
    });
    for (const name of RANGES) byId(name).addEventListener("input", () => this.#showRange(name));
    byId("sampler").addEventListener("change", () => this.#fit());
    byId("dice").addEventListener("click", () => this.roll());
    byId("lock").addEventListener("click", () => this.lock(!this.locked));
    byId("seed").addEventListener("input", () => {
      this.lock(true);
      if (this.seed !== null) this.onNoise();
    });
    byId("defaults").addEventListener("click", () => this.#defaults());
    this.roll();
  }

  /** The card of the chosen model; null while none is served. */
  get card() {
    const name = byId("models").querySelector("input:checked")?.value;
    return this.#models.find((model) => model.name === name) ?? this.#models[0] ?? null;
  }

  /** The class that is chosen; null = none. */
  get label() {
    const list = byId("labels").querySelector("input[list]");
    if (list) return list.value.trim() || null;
    const index = byId("labels").querySelector("input:checked")?.value ?? "";
    return index === "" ? null : this.card.labels[Number(index)];
  }

  get seed() {
    const text = byId("seed").value.trim();
    return /^\d{1,16}$/.test(text) && Number(text) <= MAX_SEED ? Number(text) : null;
  }

  get locked() {
    return byId("lock").getAttribute("aria-pressed") === "true";
  }

  lock(locked) {
    byId("lock").setAttribute("aria-pressed", String(locked));
    byId("lock").title = locked ? "Let the seed change again" : "Keep this seed";
    say(byId("seed-hint"), locked ? "It is kept for each picture." : "A new one is rolled for each picture.");
  }

  /** Another seed. */
  roll() {
    byId("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
    this.#seedUsed = false;
    this.onNoise();
  }

  /** The models that are served now; what was chosen stays where it can. */
  offer(models) {
    if (!models.length || JSON.stringify(models) === JSON.stringify(this.#models)) return;
    const first = !this.#models.length;
    const before = first ? this.choice.model : this.card?.name;
    const label = first ? this.choice.label : this.label;
    this.#models = models;
    byId("model-field").hidden = models.length < 2;
    byId("models").replaceChildren(...models.map((model) => chip("model", model.name, model.name, model.name === (models.some((each) => each.name === before) ? before : models[0].name), () => this.#chooseModel())));
    this.#chooseModel(label);
    if (first) this.#recall();
    delete byId("choices").dataset.waiting;
  }

  /** Take a job's settings over; `locked` keeps its seed. */
  take(job, locked = true) {
    const radio = [...byId("models").querySelectorAll("input")].find((input) => input.value === job.model);
    if (radio) radio.checked = true;
    this.#chooseModel(job.label);
    this.#set(job);
    byId("seed").value = String(job.seed);
    this.lock(locked);
    this.onNoise();
  }

  /** Generate what the form says. A double click is one press. */
  async press() {
    if (this.#busy || !this.card) return;
    const recent = performance.now() - this.#pressed.at < SAME_PRESS;
    if (!recent || JSON.stringify(this.body()) !== JSON.stringify(this.#pressed.body)) {
      this.clear();
      if (this.#seedUsed && !this.locked) this.roll();
      if (this.seed === null) return this.refuse([{ field: "seed", message: `a seed is a whole number from 0 to ${MAX_SEED}` }]);
      this.#pressed = { at: -Infinity, body: this.body(), key: randomName() };
    }
    this.#pressed.at = performance.now();
    this.#busy = true;
    this.form.setAttribute("aria-busy", "true");
    try {
      await this.submit(this.#pressed.body, this.#pressed.key);
      this.#seedUsed = true;
      shelf.choose({ ...this.#pressed.body, seed: undefined });
    } catch (error) {
      this.refuse(error.fields ?? [], error.message);
    } finally {
      this.#busy = false;
      this.form.removeAttribute("aria-busy");
    }
  }

  /** The request. */
  body() {
    const { card } = this;
    const label = this.label;
    const steps = typed(byId("steps").value) ?? card.default.steps;
    const body = {
      model: card.name,
      label,
      n: Number(byId("n").value),
      seed: this.seed,
      sampler: byId("sampler").value,
      steps,
      format: byId("format").value,
      preview_every: Number.isInteger(steps) ? Math.max(1, Math.ceil(steps / FRAMES)) : 1,
      preview: "both",
    };
    if (label !== null && card.unconditional) body.guidance_scale = Number(byId("guidance_scale").value);
    if (card.eta_samplers.includes(body.sampler)) body.eta = Number(byId("eta").value);
    return body;
  }

  /** Say what has to be changed, each thing where it stands. */
  refuse(fields, summary = "") {
    const loose = fields.filter(({ field, message }) => {
      const place = document.getElementById(`${field}-error`);
      if (!place) return true;
      say(place, sentence(message));
      document.getElementById(field)?.setAttribute("aria-invalid", "true");
      if (byId("more").contains(place)) byId("more").open = true;
      return false;
    });
    const placed = fields.length > loose.length;
    say(byId("form-error"), placed && !loose.length ? "That cannot be made as it stands: see above." : summary || sentence(loose[0]?.message ?? ""));
    this.form.querySelector("[aria-invalid='true']")?.focus();
  }

  clear() {
    for (const place of this.form.querySelectorAll(".error")) say(place, "");
    for (const field of this.form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  }

  #chooseModel(label = this.choice.label) {
    const { card } = this;
    byId("labels").replaceChildren(...labelsOf(card, label, () => this.#fit()));
    byId("label-field").hidden = !card.labels.length;
    byId("n").max = String(card.max_images);
    this.#showRange("n");
    byId("sampler").replaceChildren(...card.samplers.map((name) => el("option", { value: name }, name)));
    this.#defaults();
    this.onNoise();
  }

  #defaults() {
    const { card } = this;
    byId("steps").placeholder = `1 … ${card.timesteps}`;
    this.#set({ sampler: card.default.sampler, steps: card.default.steps, guidance_scale: card.default.guidance_scale, eta: 0, format: "png" });
  }

  /** What was chosen on the last visit, where the model is still that one. */
  #recall() {
    if (this.choice.model === this.card.name) this.#set(this.choice);
  }

  #set(values) {
    for (const name of ["n", "sampler", "steps", "guidance_scale", "eta", "format"]) {
      const value = values[name];
      if (value === undefined || value === null) continue;
      const field = byId(name);
      if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) continue;
      field.value = String(value);
      if (RANGES.includes(name)) this.#showRange(name);
    }
    this.#fit();
  }

  /** Show only what applies. */
  #fit() {
    const { card } = this;
    byId("eta-field").hidden = !card.eta_samplers.includes(byId("sampler").value);
    byId("guidance-field").hidden = this.label === null || !card.unconditional;
  }

  #showRange(name) {
    say(byId(`${name}-value`), byId(name).value);
  }
}

/** Chips, or for a long list one field that is searched by typing. */
function labelsOf(card, chosen, changed) {
  if (card.labels.length > CHIPS) {
    const options = card.labels.map((label) => el("option", { value: label }));
    const field = el("input", { list: "label-list", id: "label", "aria-label": "Label", placeholder: card.unconditional ? "anything" : "", onchange: changed, oninput: changed });
    field.value = chosen ?? "";
    return [field, el("datalist", { id: "label-list" }, ...options)];
  }
  const known = card.labels.indexOf(chosen);
  const place = known >= 0 ? known : chosen === null && card.unconditional ? -1 : Math.floor(Math.random() * card.labels.length);
  const chips = card.labels.map((label, i) => chip("label", String(i), label, i === place, changed));
  return card.unconditional ? [...chips, chip("label", "", "anything", place === -1, changed)] : chips;
}

function chip(name, value, words, checked, changed) {
  return el("label", { class: "chip" }, el("input", { type: "radio", name, value, checked, onchange: () => changed() }), el("span", {}, words));
}

/** A number where one was typed, the text itself where the server is to say what is wrong, undefined for nothing. */
function typed(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  return /^-?\d+(\.\d+)?$/.test(trimmed) ? Number(trimmed) : trimmed;
}
