/** The running model, for the cards: posts jobs, collects their frames, and works out what the network predicted. */

import * as api from "../../shared/api.js";
import { follow } from "../../shared/events.js";
import { toBase64 } from "../../shared/inputs.js";
import { picture as pictureFile } from "../../shared/pictures.js";
import { torchNormals } from "../math/random.js";
import { floatsOf } from "./npy.js";
import { combined, decode, encode, fromPlanes } from "./pictures.js";
import { subjectsOf } from "./training.js";

const AT_ONCE = 2; // requests
const SCORE_MS = 90_000; // for one evaluation on a busy server

/** What the network saw and predicted at one step. @typedef {import("./pictures.js").Picture} Picture
 *  @typedef {{step: number, t: number, alpha: number, sigma: number, xt: Picture, x0: Picture, epsilon: Picture}} Prediction */

/** An ended job and its frames: `xt` and `x0` by step and image. */
export class Run {
  job = /** @type {any} */ (null);
  /** @type {{step: number, t: number, sigma: number}[]} */
  steps = [];
  /** @type {Map<string, Blob>} */
  files = new Map();

  add({ step, t, sigma, kind, image, data, media_type: type }) {
    if (!this.steps.some((each) => each.step === step)) this.steps.push({ step, t, sigma });
    this.files.set(`${kind} ${step} ${image}`, new Blob([Uint8Array.from(atob(data), (each) => each.charCodeAt(0))], { type }));
  }

  file(kind, step, image = 0) {
    return this.files.get(`${kind} ${step} ${image}`) ?? null;
  }
}

/** A model of pixels whose network the cards ask. */
export class Network {
  /** @param {any} card @param {import("../../shared/server.js").Server} server */
  constructor(card, server) {
    this.card = card;
    this.server = server;
    this.subjects = subjectsOf(card);
  }

  get isOfPixels() {
    return !this.card.latent;
  }

  /** Whether it can be asked about a picture (`POST /score`). */
  get readsPictures() {
    return this.isOfPixels && this.card.pictures === "start";
  }

  /** The request's fields that name a subject; none for an unconditional picture. @param {string | null} subject */
  asked(subject) {
    if (subject === null) return {};
    return this.card.labels.length ? { label: subject } : { prompt: subject };
  }

  /**
   * Post a job and collect its frames until it ends.
   * @param {Record<string, any>} body @param {{onEvent?: (event: any, run: Run) => void, signal: AbortSignal}} options
   * @returns {Promise<Run>} @throws {Error} if the server refuses the job or the job fails
   */
  async run(body, { onEvent = () => {}, signal }) {
    const run = new Run();
    run.job = await api.generate({ model: this.card.name, ...body }, api.randomId());
    signal.addEventListener("abort", () => ["queued", "running"].includes(run.job.status) && api.cancel(run.job.id).catch(() => {}), { once: true });
    await follow(run.job.id, {
      after: 0, signal, needsKey: () => this.server.needsKey, onOpen: () => {}, onDisconnect: () => {}, onMissing: () => {},
      exists: async () => Boolean(await api.json(`/jobs/${run.job.id}`)),
      onEvent: (event) => {
        if (event.type === "frame") run.add(event);
        if (event.result) run.job = event.result;
        onEvent(event, run);
      },
    });
    if (signal.aborted) throw new DOMException("The card was closed.", "AbortError");
    if (run.job.status !== "succeeded") throw new Error(run.job.error?.message ?? `The job was ${run.job.status}.`);
    run.steps.sort((a, b) => a.step - b.step);
    return run;
  }

  /** The finished pictures. @param {Run} run @returns {Promise<Picture[]>} */
  async finished(run) {
    return Promise.all(run.job.images.map(async (image) => decode(await pictureFile(image), this.card.channels)));
  }

  /**
   * A job of DDIM without fresh noise, and what the network saw and predicted at each step.
   *
   * Frames are pictures of 8 bits in −1 … 1, and x_t reaches beyond. So x_t is worked out again: from the noise of the
   * seed, with x_{t'} = α'·x̂_0 + σ'·ε̂. This needs guidance, with which ε̂ belongs to the clipped x̂_0 in the frames.
   * @returns {Promise<{predictions: Prediction[], picture: Picture, run: Run}>}
   */
  async predictions(subject, seed, steps, { signal, onEvent = undefined }) {
    const guided = subject === null ? 1 : 1.1;
    const body = { ...this.asked(subject), seed, steps, sampler: "ddim", eta: 0, guidance_scale: guided, preview_every: 1, preview: "x0", n: 1 };
    const run = await this.run(body, { signal, onEvent });
    const { width, height, channels } = this.card;
    let xt = fromPlanes(torchNormals(seed, width * height * channels), width, height, channels);
    const predictions = [];
    for (const [k, { step, t, sigma }] of run.steps.entries()) {
      const alpha = Math.sqrt(1 - sigma ** 2);
      const file = run.file("x0", step);
      if (!file) throw new Error("The server left out a frame because this browser was slow. Try again.");
      const x0 = await decode(file, channels);
      const epsilon = combined((x, d) => (x - alpha * d) / sigma, xt, x0);
      predictions.push({ step, t, alpha, sigma, xt, x0, epsilon });
      const next = run.steps[k + 1];
      if (next) xt = combined((d, e) => Math.sqrt(1 - next.sigma ** 2) * d + next.sigma * e, x0, epsilon);
    }
    return { predictions, picture: (await this.finished(run))[0], run };
  }

  /**
   * What the network predicts of a picture with the noise of a seed, at several levels, from much noise to little.
   * @param {Picture} source @returns {Promise<{predictions: Prediction[], picture: Picture}>} the picture as it was sent, in 8 bits
   */
  async noised(source, seed, count, { signal }) {
    const file = await encode(source);
    const image = await toBase64(file);
    const times = Array.from({ length: count }, (_, k) => Math.round((this.card.timesteps - 1) * (1 - (k + 0.5) / count)));
    const predictions = [];
    for (let k = 0; k < count; k += AT_ONCE) {
      if (signal.aborted) throw new DOMException("The card was closed.", "AbortError");
      predictions.push(...(await Promise.all(times.slice(k, k + AT_ONCE).map((t) => this.score({ image, t, seed })))));
    }
    return { predictions: predictions.map((each, step) => ({ ...each, step })), picture: await decode(file, this.card.channels) };
  }

  /** Add the noise of a seed to a picture. @param {Picture} source @returns {Promise<{job: string, xt: Picture}>} */
  async noise(source, t, seed) {
    const job = await this.#ask("/noise", { image: await toBase64(await encode(source)), t, seed });
    return { job: job.id, xt: await this.#array(job, "x_t") };
  }

  /**
   * One evaluation. With a seed, its noise is added first; without one, the picture is x_t.
   * @param {{image: string, t: number, seed?: number}} fields image: base64, or `job:ID/images/K` @returns {Promise<Omit<Prediction, "step">>}
   */
  async score(fields) {
    const subject = this.card.unconditional ? null : this.subjects[0];
    const job = await this.#ask("/score", { ...this.asked(subject), ...fields });
    const [xt, epsilon] = await Promise.all(["x_t", "epsilon"].map((name) => this.#array(job, name)));
    const { t, alpha, sigma } = job.result.level;
    return { t, alpha, sigma, xt, epsilon, x0: combined((x, e) => (x - sigma * e) / alpha, xt, epsilon) };
  }

  /** The finished job of a request about a picture. */
  async #ask(path, fields) {
    const body = JSON.stringify({ model: this.card.name, ...fields });
    const job = await api.json(path, { method: "POST", headers: { "Content-Type": "application/json", Prefer: "wait=60" }, body, timeout: SCORE_MS });
    if (job.status !== "succeeded") throw new Error(job.error?.message ?? "The server is busy. Try again in a moment.");
    return job;
  }

  async #array(job, name) {
    const { url, shape: [channels, height, width] } = job.arrays.find((each) => each.name === name);
    return fromPlanes(floatsOf(await (await api.request(url)).arrayBuffer()), width, height, channels);
  }
}
