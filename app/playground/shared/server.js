/** The server's current state: whether it responds, whether it needs an API key, and which models it serves. */

import { json, key } from "./api.js";

const RETRY_MS = 1500; // between two checks while no picture can be made
const POLL_MS = 15_000; // between two checks otherwise
const LOADING_SECONDS = 30; // the time a worker may take to load before it counts as missing

/** Sends `change` when `state` or the models change, and `served` whenever a check finds that a model is served. */
export class Server extends EventTarget {
  /** @type {"connecting" | "starting" | "ready" | "no worker" | "unreachable" | "locked"} */
  state = "connecting";
  /** @type {any[]} model cards */
  models = [];
  /** @type {Record<string, any>} the properties of the request's JSON Schema */
  requestSchema = {};
  needsKey = false;

  #wake = () => {};
  #lastServed = performance.now(); // when a model was last served, or when the page opened

  /** Check the server for as long as the page is open. */
  async run() {
    for (;;) {
      await this.#check();
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, this.state === "ready" || this.state === "locked" ? POLL_MS : RETRY_MS);
      });
    }
  }

  /** Width and height of a model's pictures. */
  size(name) {
    const card = this.models.find((model) => model.name === name);
    return card ? [card.width, card.height] : [28, 28];
  }

  /** Check now, and wait until a check finds that a model is served. */
  served() {
    this.#wake();
    return new Promise((resolve) => this.addEventListener("served", resolve, { once: true }));
  }

  /** Check now, because a connection broke or a key was entered. */
  checkNow() {
    this.#wake();
  }

  async #check() {
    try {
      this.needsKey = (await json("/playground/settings.json")).keys;
      if (this.needsKey && !key.get()) return this.#setState("locked", this.models);
      if (!Object.keys(this.requestSchema).length) this.requestSchema = await json("/playground/request.json");
      const models = await json("/models");
      if (models.length) this.#lastServed = performance.now();
      const waited = (performance.now() - this.#lastServed) / 1000;
      this.#setState(models.length ? "ready" : waited < LOADING_SECONDS ? "starting" : "no worker", models);
    } catch (error) {
      this.#setState(error.status === 401 ? "locked" : "unreachable", this.models);
    }
  }

  #setState(state, models) {
    const unchanged = state === this.state && JSON.stringify(models) === JSON.stringify(this.models);
    [this.state, this.models] = [state, models];
    if (!unchanged) this.dispatchEvent(new Event("change"));
    if (state === "ready") this.dispatchEvent(new Event("served"));
  }
}
