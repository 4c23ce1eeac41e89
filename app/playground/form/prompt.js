/** The prompt of a text model: its text, examples to click, and parts that are chosen by chips and written into it. */

import { byId, el } from "../shared/dom.js";

const SUBJECT = "subject"; // the placeholder of what the visitor writes
const NO_GUIDE = { examples: [], template: "", parts: {} };

/** The template's clauses in order, each with the part that it names. @returns {{part: string, text: string}[]} */
const clausesOf = (template) => template.split(",").map((text) => text.trim()).filter(Boolean).map((text) => ({ part: /\{(\w+)\}/.exec(text)?.[1] ?? "", text }));

export class Prompt {
  #guide = NO_GUIDE;
  /** @type {{part: string, text: string}[]} */
  #clauses = [];
  #onChange;

  /** @param {() => void} onChange called when the text changes */
  constructor(onChange) {
    this.#onChange = onChange;
    byId("prompt").addEventListener("input", () => this.#changed());
  }

  /** The text; null without one, and for a model that takes no prompt. */
  get value() {
    return byId("prompt-field").hidden ? null : byId("prompt").value.trim() || null;
  }

  set value(text) {
    byId("prompt").value = text ?? "";
    this.#checkChips();
  }

  /** Show what a model's card offers. A text that is empty, or an example of another model, becomes one of its examples. */
  show(card) {
    const before = this.#guide;
    this.#guide = card.prompt_guide ?? NO_GUIDE;
    const { examples, template, parts } = this.#guide;
    this.#clauses = clausesOf(template);
    byId("prompt-field").hidden = !(card.inputs ?? []).includes("prompt");
    byId("examples").replaceChildren(...examples.map((example) => this.#exampleButton(example)));
    byId("examples-line").hidden = !examples.length;
    byId("prompt-parts").replaceChildren(...Object.entries(parts).map(([part, values]) => this.#chips(part, values)));
    const text = byId("prompt").value.trim();
    const replaced = this.#guide !== before && (text === "" || before.examples.includes(text));
    if (replaced && examples.length) byId("prompt").value = examples[Math.floor(Math.random() * examples.length)];
    this.#checkChips();
  }

  #exampleButton(example) {
    const choose = () => { byId("prompt").value = example; this.#changed(); };
    return el("button", { type: "button", class: "example", title: example, onclick: choose }, this.#read(example).subject);
  }

  #chips(part, values) {
    const title = part.charAt(0).toUpperCase() + part.slice(1).replaceAll("_", " ");
    const chips = ["", ...values].map((value) => el("label", { class: "chip" },
      el("input", { type: "radio", name: `part-${part}`, value, onchange: () => this.#choose(part, value) }), el("span", {}, value || "any")));
    return el("fieldset", { class: "field" }, el("legend", {}, title), el("div", { class: "chips small" }, ...chips));
  }

  /** Write the prompt again with another value of a part; an empty one leaves the part out. */
  #choose(part, value) {
    const { subject, chosen } = this.#read(byId("prompt").value);
    const values = { ...chosen, [part]: value, [SUBJECT]: subject };
    byId("prompt").value = this.#clauses.filter((clause) => values[clause.part]).map((clause) => clause.text.replace(`{${clause.part}}`, values[clause.part])).join(", ");
    this.#changed();
  }

  #changed() {
    this.#checkChips();
    this.#onChange();
  }

  /** Check the chips of the parts that the text names. */
  #checkChips() {
    const { chosen } = this.#read(byId("prompt").value);
    for (const input of byId("prompt-parts").querySelectorAll("input")) input.checked = input.value === (chosen[input.name.slice("part-".length)] ?? "");
  }

  /** The parts that a text names, and the rest of it. @returns {{subject: string, chosen: Record<string, string>}} */
  #read(text) {
    const chosen = {};
    const rest = text.split(",").map((each) => each.trim()).filter((each) => {
      const found = this.#partOf(each);
      if (found) chosen[found.part] = found.value;
      return !found && each;
    });
    return { subject: rest.join(", "), chosen };
  }

  /** The part and the value that a clause of a text names; undefined if it names none. */
  #partOf(text) {
    for (const { part, text: clause } of this.#clauses) {
      const value = (this.#guide.parts[part] ?? []).find((each) => clause.replace(`{${part}}`, each).toLowerCase() === text.toLowerCase());
      if (value !== undefined) return { part, value };
    }
    return undefined;
  }
}
