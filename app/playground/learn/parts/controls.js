/** The controls of the cards: buttons, sliders with a value, and choices of one. */

import { el, setText } from "../../shared/dom.js";

let count = 0;

/** An id that no other element has. */
const freshId = (prefix) => `${prefix}-${(count += 1)}`;

export const button = (text, onclick, { primary = false, title = null } = {}) =>
  el("button", { type: "button", class: primary ? "primary small" : "quiet", title, onclick }, text);

/**
 * A slider with a label and its value in words.
 * @param {{label: string | Node, min: number, max: number, step?: number, value: number, text?: (value: number) => string, oninput?: (value: number) => void}} options
 */
export function slider({ label, min, max, step = 1, value, text = String, oninput = () => {} }) {
  const id = freshId("slider");
  const input = /** @type {HTMLInputElement} */ (el("input", { type: "range", id, min, max, step }));
  const output = el("output", { for: id });
  const show = () => {
    setText(output, text(Number(input.value)));
    input.setAttribute("aria-valuetext", output.textContent ?? "");
  };
  input.value = String(value);
  input.addEventListener("input", () => { show(); oninput(Number(input.value)); });
  show();
  return {
    element: el("div", { class: "slider" }, el("label", { for: id }, label), output, input),
    input,
    get value() { return Number(input.value); },
    /** Move it without calling `oninput`. */
    set(next) { input.value = String(next); show(); },
    /** Offer another range; the value is the highest of it if `atEnd`. */
    range(highest, atEnd = true) {
      input.max = String(highest);
      if (atEnd) input.value = String(highest);
      input.disabled = highest <= Number(input.min);
      show();
    },
  };
}

/**
 * Chips; one is chosen.
 * @param {{label: string, options: [string, string][], value: string, onchange?: (value: string) => void}} options pairs of value and text
 */
export function choice({ label, options, value, onchange = () => {} }) {
  const name = freshId("choice");
  const chips = options.map(([each, text]) => el("label", { class: "chip" },
    el("input", { type: "radio", name, value: each, checked: each === value, onchange: () => onchange(each) }), el("span", {}, text)));
  const element = el("fieldset", { class: "field" }, el("legend", {}, label), el("div", { class: "chips small" }, ...chips));
  return {
    element,
    get value() { return element.querySelector("input:checked")?.value ?? value; },
    set(next) { for (const input of element.querySelectorAll("input")) input.checked = input.value === next; },
  };
}

/** A sentence that changes, and that screen readers announce. */
export function status(text = "") {
  const element = el("p", { class: "says", role: "status" }, text);
  return { element, say: (next, kind = "") => { setText(element, next); element.dataset.kind = kind; } };
}

export const row = (...children) => el("div", { class: "row" }, ...children);
