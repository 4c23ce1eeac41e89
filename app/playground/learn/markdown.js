/** The Markdown of this project's documents as elements: headings, paragraphs, lists, tables, code and formulas. */

import { el } from "../shared/dom.js";
import { math } from "./tex.js";

const INLINE = /(\$[^$]+\$|`[^`]+`|\*\*[^*]+\*\*|\*[^*]+\*|\[[^\]]+\]\([^)]+\))/;

/** GitHub's id of a heading. */
export const slug = (heading) => heading.toLowerCase().replaceAll(/[^\w\s-]/g, "").trim().replaceAll(/\s+/g, "-");

/** @param {string} source @returns {HTMLElement[]} */
export function markdown(source) {
  const blocks = source.replaceAll(/<!--.*?-->\n?/gs, "").split(/(```[\s\S]*?\n```|\$\$[\s\S]*?\$\$)|\n\s*\n/).filter((block) => block?.trim());
  return blocks.map((block) => blockOf(block.trim())).filter(Boolean);
}

function blockOf(block) {
  const heading = /^(#+) (.*)$/.exec(block);
  if (heading) return el(`h${Math.min(4, heading[1].length)}`, { id: slug(heading[2]) }, ...inline(heading[2]));
  if (block.startsWith("```")) return el("pre", { tabindex: 0 }, el("code", {}, block.replace(/^```\w*\n/, "").replace(/\n?```$/, "")));
  if (block.startsWith("$$")) return el("div", { class: "formula", tabindex: 0, role: "group", "aria-label": "Formula" }, math(block.slice(2, -2), { display: true }));
  const image = /^!\[([^\]]*)\]\(([^)]+)\)$/.exec(block);
  if (image) return el("img", { src: `/playground/learn/${image[2]}`, alt: image[1] });
  if (block.startsWith("|")) return table(block.split("\n"));
  if (/^[-*] /.test(block)) return el("ul", {}, ...block.split(/\n(?=[-*] )/).map((item) => el("li", {}, ...inline(item.slice(2)))));
  return el("p", {}, ...inline(block));
}

function table([head, , ...rows]) {
  const cells = (row) => row.split("|").slice(1, -1).map((cell) => cell.trim());
  return el("div", { class: "wide", tabindex: 0, role: "group", "aria-label": "Table" }, el("table", {},
    el("thead", {}, el("tr", {}, ...cells(head).map((cell) => el("th", {}, ...inline(cell))))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row).map((cell) => el("td", {}, ...inline(cell))))))));
}

function inline(text) {
  return text.replaceAll("\n", " ").split(INLINE).filter(Boolean).map((part) => {
    if (part.startsWith("$")) return math(part.slice(1, -1));
    if (part.startsWith("`")) return el("code", {}, part.slice(1, -1));
    if (part.startsWith("**")) return el("strong", {}, part.slice(2, -2));
    const link = /^\[([^\]]+)\]\(([^)]+)\)$/.exec(part);
    if (link) return link[2].startsWith("#") ? el("a", { href: link[2] }, link[1]) : el("em", {}, link[1]); // other documents are not served
    return INLINE.test(part) ? el("em", {}, part.slice(1, -1)) : part;
  });
}
