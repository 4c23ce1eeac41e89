/** The labels of a model: chips, with a search if there are many. */

import { el } from "../shared/dom.js";

const MAX_CHIPS = 200; // more labels become a text field with suggestions
const SEARCHED = 14; // with more labels than fit into two rows, a search is offered

/** @param {any} card @param {string | null} selected @param {() => void} onChange @returns {Element[]} */
export function labelInputs(card, selected, onChange) {
  if (card.labels.length > MAX_CHIPS) return textField(card, selected, onChange);
  const known = card.labels.indexOf(selected);
  const index = known >= 0 ? known : selected === null && card.unconditional ? -1 : Math.floor(Math.random() * card.labels.length);
  const chips = card.labels.map((label, i) => chip("label", String(i), label, i === index, onChange));
  const all = card.unconditional ? [...chips, chip("label", "", "anything", index === -1, onChange)] : chips;
  return card.labels.length > SEARCHED ? searched(all) : all;
}

/** Chips that scroll, below a field that hides those without its text. The chosen one stays. */
function searched(chips) {
  const matches = (each) => each.textContent.toLowerCase().includes(field.value.trim().toLowerCase());
  const field = /** @type {HTMLInputElement} */ (el("input", { type: "search", class: "label-search", "aria-label": "Search the labels", placeholder: `Search ${chips.length} labels`, autocomplete: "off", oninput: () => {
    for (const each of chips) each.hidden = !matches(each) && !each.querySelector("input").checked;
  }, onkeydown: (event) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault(); // choose the first found instead of generating
    chips.find(matches)?.querySelector("input").click();
  } }));
  return [field, el("div", { class: "chips small many" }, ...chips)];
}

function textField(card, selected, onChange) {
  const options = card.labels.map((label) => el("option", { value: label }));
  const field = el("input", { list: "label-list", id: "label", "aria-label": "Label", placeholder: card.unconditional ? "anything" : "", onchange: onChange, oninput: onChange });
  field.value = selected ?? "";
  return [field, el("datalist", { id: "label-list" }, ...options)];
}

/** A radio button that looks like a chip. */
export function chip(name, value, text, checked, onChange) {
  return el("label", { class: "chip" }, el("input", { type: "radio", name, value, checked, onchange: () => onChange() }), el("span", {}, text));
}
