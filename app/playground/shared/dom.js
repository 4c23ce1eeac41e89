/** Creates elements without parsing HTML: text from any source is shown as text. */

const MARGIN = 8; // pixels between a menu and the edge of the window
const SVG = "http://www.w3.org/2000/svg";

/** @param {string} id @returns {any} the element with this id, which must exist */
export const byId = (id) => document.getElementById(id);

/**
 * An element with attributes and children. `onclick` and the like add listeners; false and null are left out.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node|string|null|false)} children
 */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== false));
  return element;
}

/** Set an element's text. Unchanged text is not written again, so screen readers do not repeat it. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A menu behind a button. `items` are [text, action] pairs, or null for a separator. */
export function menu(text, items, { right = false, name = null } = {}) {
  const list = el("div", { class: right ? "right" : null });
  const content = text === "…" ? dots() : text;
  const details = el("details", { class: "menu" }, el("summary", { class: text === "…" ? "dots" : null, "aria-label": name }, content), list);
  details.addEventListener("toggle", () => details.open && placeInside(details, list));
  for (const item of items) {
    if (item === null) list.append(el("hr"));
    else list.append(el("button", { type: "button", onclick: () => { details.open = false; item[1](); } }, item[0]));
  }
  return details;
}

/** Open upward if the menu fits there only, and move it as far as the window needs. */
function placeInside(details, list) {
  details.classList.remove("up");
  list.style.translate = "";
  const { bottom, height, left, right } = list.getBoundingClientRect();
  details.classList.toggle("up", bottom > innerHeight && details.getBoundingClientRect().top > height);
  const up = details.classList.contains("up");
  const beyond = Math.max(0, right + MARGIN - document.documentElement.clientWidth) - Math.max(0, MARGIN - left);
  const below = up ? 0 : Math.min(Math.max(0, bottom + MARGIN - innerHeight), Math.max(0, bottom - height - MARGIN));
  if (beyond || below) list.style.translate = `${-beyond}px ${-below}px`;
}

function dots() {
  const circles = [5, 12, 19].map((x) => svg("circle", { cx: x, cy: 12, r: 1.9 }));
  return svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, ...circles);
}

/** Close menus on Escape and on a click elsewhere, so that at most one is open. */
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

let announceTimer = 0;

/** Have screen readers announce a milestone. */
export function announce(text) {
  const live = byId("live");
  live.textContent = "";
  clearTimeout(announceTimer);
  announceTimer = setTimeout(() => { live.textContent = text; }, 60);
}

/** Whether the visitor prefers reduced motion. */
export const prefersReducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
