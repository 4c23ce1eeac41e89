/** Text with formulas: "$x_t$" becomes MathML, "`code`" becomes code. */

import { el } from "../shared/dom.js";
import { math } from "./tex.js";

/** @param {string} text @returns {(Node | string)[]} */
export function prose(text) {
  return text.split(/(\$[^$]+\$|`[^`]+`)/).filter(Boolean).map((part) => {
    if (part.startsWith("$")) return math(part.slice(1, -1));
    return part.startsWith("`") ? el("code", {}, part.slice(1, -1)) : part;
  });
}
