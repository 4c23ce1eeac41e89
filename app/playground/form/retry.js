/** A press that could not be served: it is said, kept, and sent again when the server is back. */

import { setText } from "../shared/dom.js";
import { outageText } from "../shared/text.js";

const AGAIN_MS = 2000; // between two tries while the server is ready but answered that something is away

export class Retry {
  /** @type {(() => void) | null} */
  #held = null;
  #message = "";
  #state = "connecting";
  #timer = 0;

  /** @param {HTMLElement} place where it is said */
  constructor(place) {
    this.place = place;
  }

  /** Keep a press until the server is ready. @param {() => void} press @param {string} message why it was not served */
  hold(press, message) {
    this.drop();
    [this.#held, this.#message] = [press, message];
    this.#wait();
  }

  /** Forget the press. */
  drop() {
    clearTimeout(this.#timer);
    this.#held = null;
    setText(this.place, "");
  }

  /** @param {string} state of the server */
  serverChanged(state) {
    this.#state = state;
    if (!this.#held) return;
    if (state === "ready") this.#send();
    else this.#wait();
  }

  #wait() {
    const reason = outageText(this.#state) ?? this.#message;
    setText(this.place, `${reason} Your request is kept, and sent as soon as it can be served.`);
    clearTimeout(this.#timer);
    if (this.#state === "ready") this.#timer = setTimeout(() => this.#send(), AGAIN_MS);
  }

  #send() {
    const press = this.#held;
    this.drop();
    press?.();
  }
}
