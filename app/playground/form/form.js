/** The request form, built from the cards of the served models and the JSON Schema of the request. */

import { Adapters } from "./adapters.js";
import { Controls } from "./controls.js";
import { byId, setText } from "../shared/dom.js";
import { factsOfModel } from "../shared/text.js";
import { randomId } from "../shared/api.js";
import { clearFieldErrors, showFieldErrors } from "./field-errors.js";
import { Fields, parseNumber } from "./fields.js";
import { chip, labelInputs } from "./labels.js";
import { Prompt } from "./prompt.js";
import { Retry } from "./retry.js";
import { describeSampler, offerSamplers } from "./samplers.js";
import { StartPicture } from "./start-picture.js";
import * as storage from "../shared/storage.js";

const MAX_SEED = Number.MAX_SAFE_INTEGER;
const MAX_FRAMES = 60; // per job
const MAX_NOISE = 50_000; // samples of predicted noise in the frames of one step: noise hardly compresses
const DOUBLE_CLICK_MS = 800; // within which a second press counts as the same one

export class Form {
  /** @type {any[]} */
  #models = [];
  #fields = new Fields({});
  #prompt = new Prompt(() => this.#showApplicable());
  #adapters = new Adapters();
  #controls = new Controls();
  /** The picture that the next job starts from. */
  picture = new StartPicture(() => this.#size);
  #retry = new Retry(byId("form-error"));
  #lastPress = { at: -Infinity, body: /** @type {any} */ (null), key: "" };
  #seedUsed = false;
  #busy = false;

  /** Called when the seed or the picture size changes. @type {(byVisitor: boolean) => void} */
  onSeedChange = () => {};

  /** @param {(body: any, key: string) => Promise<void>} submit */
  constructor(submit) {
    this.form = byId("form");
    this.submit = submit;
    this.choice = storage.loadChoice();
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.generate();
    });
    byId("n").addEventListener("input", () => this.#showCount());
    byId("sampler").addEventListener("change", () => this.#showApplicable());
    byId("steps").addEventListener("input", () => this.card && describeSampler(this.card, this.#steps));
    byId("dice").addEventListener("click", () => this.rollSeed(true));
    byId("lock").addEventListener("click", () => this.lockSeed(!this.locked));
    byId("seed").addEventListener("input", () => {
      this.lockSeed(true);
      if (this.seed !== null) this.onSeedChange(true);
    });
    byId("defaults").addEventListener("click", () => this.#defaults());
    byId("fields").addEventListener("input", () => this.picture.resize());
    this.rollSeed();
  }

  /** The card of the selected model; null while no model is served. */
  get card() {
    const name = byId("models").querySelector("input:checked")?.value;
    return this.#models.find((model) => model.name === name) ?? this.#models[0] ?? null;
  }

  /** The selected label; null means none. */
  get label() {
    const list = byId("labels").querySelector("input[list]");
    if (list) return list.value.trim() || null;
    const index = byId("labels").querySelector("input:checked")?.value ?? "";
    return index === "" ? null : this.card.labels[Number(index)];
  }

  /** The prompt; null without one, and for a model that takes none. */
  get prompt() {
    return this.#prompt.value;
  }

  get seed() {
    const text = byId("seed").value.trim();
    return /^\d{1,16}$/.test(text) && Number(text) <= MAX_SEED ? Number(text) : null;
  }

  get locked() {
    return byId("lock").getAttribute("aria-pressed") === "true";
  }

  lockSeed(locked) {
    byId("lock").setAttribute("aria-pressed", String(locked));
    byId("lock").title = locked ? "Let the seed change again" : "Keep this seed";
    setText(byId("seed-hint"), `The first noise is drawn from it. ${locked ? "This one is kept: the same settings give the same picture." : "Every request gets a new one."}`);
  }

  /** Draw a new random seed. */
  rollSeed(byVisitor = false) {
    byId("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
    this.#seedUsed = false;
    this.onSeedChange(byVisitor);
  }

  /**
   * Show the models that are served now. The selection is kept if its model is still served.
   * @param {any[]} models their cards @param {Record<string, any>} properties of the request's JSON Schema
   */
  setModels(models, properties) {
    if (!models.length || JSON.stringify(models) === JSON.stringify(this.#models)) return;
    const first = !this.#models.length;
    if (first) this.#fields = new Fields(properties);
    const before = first ? this.choice.model : this.card?.name;
    const label = first ? this.choice.label : this.label;
    this.#models = models;
    byId("model-field").hidden = false;
    byId("models").replaceChildren(...models.map((model) => chip("model", model.name, model.name, model.name === (models.some((each) => each.name === before) ? before : models[0].name), () => this.#chooseModel())));
    this.#chooseModel(label);
    if (first) this.#restoreChoice();
    delete byId("choices").dataset.waiting;
  }

  /** Say what the server is doing, to a press that waits for it. @param {string} state of the server */
  serverChanged(state) {
    this.#retry.serverChanged(state);
  }

  /** Choose a label or write a prompt, and generate. @param {string} subject */
  start(subject) {
    const index = this.card.labels.indexOf(subject);
    if (index >= 0) byId("labels").querySelector(`input[value="${index}"]`)?.click();
    else this.#prompt.value = subject;
    return this.generate();
  }

  /** Fill the form with a job's request; `locked` keeps its seed. */
  load(job, locked = true) {
    const radio = [...byId("models").querySelectorAll("input")].find((input) => input.value === job.model);
    if (radio) radio.checked = true;
    this.#chooseModel(job.label);
    this.#prompt.value = job.prompt;
    this.#adapters.show(this.card, job.loras ?? []);
    this.#controls.load(job.controls ?? []);
    this.#setFields(job);
    this.picture.load(job);
    byId("seed").value = String(job.seed);
    this.lockSeed(locked);
    this.onSeedChange(false);
  }

  /** Submit the form's request. A double click submits once. */
  async generate() {
    if (this.#busy) return;
    if (!this.card) return this.#retry.hold(() => this.generate(), "No model is served yet.");
    const recent = performance.now() - this.#lastPress.at < DOUBLE_CLICK_MS;
    if (!recent || JSON.stringify(this.request()) !== JSON.stringify(this.#lastPress.body)) {
      clearFieldErrors(this.form);
      if (this.#seedUsed && !this.locked) this.rollSeed();
      if (this.seed === null) return this.showErrors([{ field: "seed", message: `a seed is a whole number from 0 to ${MAX_SEED}` }]);
      this.#lastPress = { at: -Infinity, body: this.request(), key: randomId() };
    }
    this.#lastPress.at = performance.now();
    await this.#send(this.#lastPress);
  }

  /** Submit a press. If the server is away, the same press is sent again when it is back. */
  async #send(press) {
    this.#retry.drop();
    this.#busy = true;
    this.form.setAttribute("aria-busy", "true");
    try {
      await this.submit(press.body, press.key);
      this.#seedUsed = true;
      storage.saveChoice({ ...press.body, seed: undefined, image: undefined, mask: undefined, controls: undefined });
    } catch (error) {
      if (error.isOutage) this.#retry.hold(() => this.#send(press), error.message);
      else this.showErrors(error.fields ?? [], error.message);
    } finally {
      this.#busy = false;
      this.form.removeAttribute("aria-busy");
    }
  }

  /** The request. */
  request() {
    const { card } = this;
    const fields = this.#fields.request(card);
    const steps = fields.sigmas?.length ?? parseNumber(byId("steps").value) ?? card.default.steps;
    return {
      ...fields,
      ...this.picture.request(),
      model: card.name,
      label: this.label,
      ...(this.prompt === null ? {} : { prompt: this.prompt }),
      ...(this.#adapters.value.length ? { loras: this.#adapters.value } : {}),
      ...(this.#controls.value.length ? { controls: this.#controls.value } : {}),
      n: Number(byId("n").value),
      seed: this.seed,
      sampler: byId("sampler").value,
      ...(fields.sigmas ? {} : { steps }), // the levels are their number
      preview_every: Number.isInteger(steps) ? Math.max(1, Math.ceil(steps / MAX_FRAMES)) : 1,
      preview: card.previews?.includes("all") && Number(byId("n").value) * samplesOfFrame(card, this.#size) <= MAX_NOISE ? "all" : "both",
    };
  }

  /** Show each error next to its field, and the others below the form. */
  showErrors(fields, summary = "") {
    const named = fields.map(({ field, message }) => ({ field, message: this.#memberOf(field) + message }));
    showFieldErrors(this.form, named, summary);
  }

  /** `“edges”, image: ` for `controls.0.image`; empty for a field that is no list. */
  #memberOf(field) {
    const [list, index, member] = field.split(".");
    const item = { loras: this.#adapters, controls: this.#controls }[list]?.value[Number(index)];
    return item && member ? `“${item.name}”, ${member}: ` : "";
  }

  /** Remember the pictures that were sent with a job. @param {any} body @param {any} job */
  sent(body, job) {
    this.picture.sent(body, job);
    this.#controls.sent(body, job);
  }

  #chooseModel(label = this.choice.label) {
    const { card } = this;
    const labels = labelInputs(card, label, () => this.#showApplicable());
    byId("labels").className = labels.every((each) => each.matches(".chip")) ? "chips" : "";
    byId("labels").replaceChildren(...labels);
    byId("label-field").hidden = !card.labels.length;
    this.#prompt.show(card);
    this.#adapters.show(card);
    this.#controls.show(card);
    this.picture.show(card);
    byId("n").max = String(card.max_images);
    this.#showCount();
    offerSamplers(card);
    setText(byId("model-facts"), factsOfModel(card));
    this.#defaults();
    this.onSeedChange(false);
  }

  #defaults() {
    const { card } = this;
    byId("steps").placeholder = `1 … ${card.timesteps}`;
    this.#fields.reset(card);
    this.#setFields(card.default);
  }

  /** Restore the values of the last visit if the model is the same. */
  #restoreChoice() {
    if (this.choice.model !== this.card.name) return;
    if (this.choice.prompt) this.#prompt.value = this.choice.prompt;
    this.#adapters.show(this.card, this.choice.loras ?? []);
    this.#setFields(this.choice);
  }

  #setFields(values) {
    const offered = this.card.samplers.includes(values.sampler);
    for (const name of offered ? ["n", "steps", "sampler"] : ["n", "steps"]) {
      if (values[name] !== undefined && values[name] !== null) byId(name).value = String(values[name]);
    }
    this.#fields.load(values);
    this.#showCount();
    this.#showApplicable();
  }

  /** Show only the fields that apply to the current selection. */
  #showApplicable() {
    describeSampler(this.card, this.#steps);
    this.#fields.showApplicable(this.card, { conditioned: this.label !== null || this.prompt !== null, sampler: byId("sampler").value });
  }

  /** The width and height that the form asks for. @returns {[number, number]} */
  get #size() {
    const asked = ["width", "height"].map((name) => (byId(`${name}-field`)?.hidden === false ? Number(byId(name).value) : 0));
    return [asked[0] || this.card.width, asked[1] || this.card.height];
  }

  /** The number of steps in the form, or the model's; not a number if the text is none. */
  get #steps() {
    return Number(parseNumber(byId("steps").value) ?? this.card.default.steps);
  }

  #showCount() {
    setText(byId("n-value"), byId("n").value);
  }
}

/** The samples of one frame; frames of latents have a pixel for each. */
function samplesOfFrame({ latent, channels }, [width, height]) {
  return latent ? (3 * width * height) / latent.downscale ** 2 : channels * width * height;
}
