/** What the server can do now: which models are served, whether it wants a key, whether it is there at all. */

import { json, key } from "./api.js";

const OFTEN = 1500; // ms between two looks while something is amiss
const SELDOM = 15_000;
const LOADING_SECONDS = 30; // that a worker may take before it is called missing

/** `change` is sent when `state` or the models are others than before. */
export class Server extends EventTarget {
  /** @type {"connecting" | "starting" | "ready" | "no worker" | "away" | "locked"} */
  state = "connecting";
  /** @type {any[]} model cards */
  models = [];
  keys = false;

  #wake = () => {};
  #since = performance.now(); // when a model was last served, or the page opened

  /** Look again and again, for as long as the page is open. */
  async run() {
    for (;;) {
      await this.#look();
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, this.state === "ready" || this.state === "locked" ? SELDOM : OFTEN);
      });
    }
  }

  /** Width and height of a model's pictures. */
  size(name) {
    const card = this.models.find((model) => model.name === name);
    return card ? [card.width, card.height] : [28, 28];
  }

  /** Look now: something broke, or a key was given. */
  soon() {
    this.#wake();
  }

  async #look() {
    try {
      this.keys = (await json("/playground/settings.json")).keys;
      if (this.keys && !key.get()) return this.#become("locked", this.models);
      const models = await json("/models");
      if (models.length) this.#since = performance.now();
      const waited = (performance.now() - this.#since) / 1000;
      this.#become(models.length ? "ready" : waited < LOADING_SECONDS ? "starting" : "no worker", models);
    } catch (error) {
      this.#become(error.status === 401 ? "locked" : "away", this.models);
    }
  }

  #become(state, models) {
    const same = state === this.state && JSON.stringify(models) === JSON.stringify(this.models);
    [this.state, this.models] = [state, models];
    if (!same) this.dispatchEvent(new Event("change"));
  }
}
