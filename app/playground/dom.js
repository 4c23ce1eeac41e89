/** Elements, made without a word of HTML: text from anywhere is shown as text. */

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} id @returns {any} the element of that id, which the page has */
export const byId = (id) => document.getElementById(id);

/**
 * An element with attributes (`onclick` and the like are listeners; false and null are left out) and children.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node|string|null|false)} children
 */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== false));
  return element;
}

/** Write a text only where it differs, so that screen readers and layout are left in peace. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A menu behind a button: `entries` are [words, action], or null for a line between them. */
export function menu(words, entries, { right = false, name = null } = {}) {
  const list = el("div", { class: right ? "right" : null });
  const face = words === "…" ? dots() : words;
  const details = el("details", { class: "menu" }, el("summary", { class: words === "…" ? "dots" : null, "aria-label": name }, face), list);
  details.addEventListener("toggle", () => {
    details.classList.remove("up");
    const { bottom, height } = list.getBoundingClientRect();
    details.classList.toggle("up", bottom > innerHeight && details.getBoundingClientRect().top > height);
  });
  for (const entry of entries) {
    if (entry === null) list.append(el("hr"));
    else list.append(el("button", { type: "button", onclick: () => { details.open = false; entry[1](); } }, entry[0]));
  }
  return details;
}

function dots() {
  const each = [5, 12, 19].map((x) => svg("circle", { cx: x, cy: 12, r: 1.9 }));
  return svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, ...each);
}

/** Menus close by Escape and by a click elsewhere; one is open at a time. */
export function closeMenus() {
  const close = (except) => {
    for (const open of document.querySelectorAll("details.menu[open]")) if (!open.contains(except)) open.open = false;
  };
  document.addEventListener("click", (event) => close(event.target));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const open = document.querySelector("details.menu[open]");
    if (open) { open.open = false; open.querySelector("summary").focus(); }
  });
}

let region = 0;

/** Tell screen readers of a milestone. */
export function announce(words) {
  const live = byId("live");
  live.textContent = "";
  clearTimeout(region);
  region = setTimeout(() => { live.textContent = words; }, 60);
}

/** Whether the visitor asked for little motion. */
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
