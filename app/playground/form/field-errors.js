/** What is wrong with a request, next to the fields of the form. */

import { sentence } from "../shared/api.js";
import { byId, setText } from "../shared/dom.js";

/**
 * Show each error next to its field, and the others below the form.
 * @param {HTMLElement} form @param {{field: string, message: string}[]} fields @param {string} summary without fields
 */
export function showFieldErrors(form, fields, summary) {
  const unplaced = fields.filter(({ field, message }) => {
    const place = document.getElementById(`${field.split(".")[0]}-error`);
    if (!place) return true;
    setText(place, sentence(message));
    document.getElementById(field)?.setAttribute("aria-invalid", "true");
    if (byId("more").contains(place)) byId("more").open = true;
    return false;
  });
  const placed = fields.length > unplaced.length;
  const [first] = unplaced;
  const text = first ? `${titleOfField(first.field)}: ${sentence(first.message)}` : placed ? "Some fields need attention: see above." : summary;
  setText(byId("form-error"), text);
  form.querySelector("[aria-invalid='true']")?.focus();
}

/** @param {HTMLElement} form */
export function clearFieldErrors(form) {
  for (const place of form.querySelectorAll(".error")) setText(place, "");
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

/** A field's name as the form shows it: "guidance_scale" is "Guidance". */
function titleOfField(name) {
  const label = document.querySelector(`label[for="${CSS.escape(name.split(".")[0])}"]`);
  return label?.textContent?.trim() || name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
}
