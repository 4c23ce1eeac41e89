/** Tables of figures; the ones that are bounded have a bar. */

import { el } from "../shared/dom.js";

const UNKNOWN = "–";
const FULL = 0.9; // share from which a bar warns

export const count = (value) => (value === null || value === undefined ? UNKNOWN : value.toLocaleString("en"));

/**
 * A table, or a sentence if it is empty. In a narrow window each row is a list of its cells, each with its column's name;
 * the roles keep it a table for screen readers.
 * @param {{name: string, columns: string[], rows: (Node | string)[][], empty: string}} content numbers are in every column but the first
 */
export function table({ name, columns, rows, empty }) {
  if (!rows.length) return el("p", { class: "hint" }, empty);
  const head = el("tr", { role: "row" }, ...columns.map((column) => el("th", { scope: "col", role: "columnheader" }, column)));
  const cells = (others) => others.map((cell, k) => el("td", { role: "cell", "data-column": columns[k + 1] }, cell));
  const body = rows.map(([first, ...others]) => el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, first), ...cells(others)));
  const whole = el("table", { role: "table" }, el("thead", { role: "rowgroup" }, head), el("tbody", { role: "rowgroup" }, ...body));
  return el("div", { class: "scrolled", tabindex: 0, role: "region", "aria-label": name }, whole);
}

/** What is used of what is allowed, with a bar; without a limit, the number alone. @param {number} used @param {number | null} allowed */
export function usedOf(used, allowed, note = "") {
  if (allowed === null) return el("span", {}, count(used), el("span", { class: "hint" }, " no limit"));
  const share = allowed ? Math.min(1, used / allowed) : 1;
  const fill = el("span", { class: "fill" });
  fill.style.transform = `scaleX(${share})`;
  return el("span", { class: "used", "data-full": String(share >= FULL) }, `${count(used)} of ${count(allowed)}`,
    el("span", { class: "rail", "aria-hidden": "true" }, fill), note && el("span", { class: "hint" }, note));
}
