/** The low-rank adapters of a text model: a chip for each, and the weight of those that are chosen. */

import { byId, el } from "../shared/dom.js";
import { parseNumber } from "./fields.js";

const DEFAULT_WEIGHT = 1;

export class Adapters {
  /** Offer the adapters of a model. @param {any} card @param {{name: string, weight?: number}[]} chosen */
  show(card, chosen = this.value) {
    const offered = card.loras ?? [];
    byId("loras-field").hidden = !offered.length;
    byId("loras").replaceChildren(...offered.map(({ name }) => this.#row(name, chosen.find((each) => each.name === name))));
  }

  /** The chosen adapters with their weights. */
  get value() {
    return [...byId("loras").children].filter((row) => row.querySelector("input").checked).map((row) => {
      const [box, weight] = row.querySelectorAll("input");
      return { name: box.value, weight: parseNumber(weight.value) ?? DEFAULT_WEIGHT };
    });
  }

  #row(name, chosen) {
    const weight = el("input", { type: "number", step: "any", value: chosen?.weight ?? DEFAULT_WEIGHT, "aria-label": `Weight of ${name}`, hidden: !chosen });
    const box = el("input", { type: "checkbox", value: name, checked: Boolean(chosen), onchange: () => { weight.hidden = !box.checked; } });
    return el("div", { class: "adapter" }, el("label", { class: "chip" }, box, el("span", {}, name)), weight);
  }
}
