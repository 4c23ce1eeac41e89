/** JSON Schema in words: kinds, ranges, and the fields of objects. */

import { el } from "./dom.js";

/** Text with `code` in it, as paragraphs. @param {string} [text] */
export function prose(text = "") {
  return text.split(/\n\s*\n/).filter((part) => part.trim()).map((part) => el("p", {}, ...coded(part)));
}

/** The same within a line. */
export const coded = (text) => text.split("`").map((part, k) => (k % 2 ? el("code", {}, part) : part));

/** What a value may be, as nodes; objects that have a name lead to it. @returns {(Node|string)[]} */
export function kind(schema) {
  if (schema.$ref) return [link(nameOf(schema.$ref))];
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return joined(choices.map(kind), " or ");
  if (schema.allOf) return joined(schema.allOf.map(kind), " and ");
  if ("const" in schema) return [written(schema.const)];
  if (schema.enum) return joined(schema.enum.map((each) => [written(each)]), ", ");
  if (schema.type === "array") return ["list of ", ...kind(schema.items ?? {})];
  if (schema.type === "object" && schema.additionalProperties instanceof Object) return ["object of ", ...kind(schema.additionalProperties)];
  return [schema.type ?? "anything", limits(schema)];
}

/** A list of fields: name, kind, what it is. Each row is { name, schema, text, note }. */
export function fields(rows) {
  return el("ul", { class: "fields" }, ...rows.map(({ name, schema, text, note }) =>
    el("li", {},
      el("p", {}, el("code", {}, name), " ", el("span", { class: "hint" }, ...(schema ? kind(schema) : []), note ? ` · ${note}` : "")),
      text ? el("p", { class: "what" }, ...coded(text)) : null)));
}

/** The fields of an object; of one that is sent, which of them are needed. */
export function members(schema, { sent = false } = {}) {
  const needed = new Set(schema.required ?? []);
  return fields(Object.entries(schema.properties ?? {}).map(([name, each]) => {
    const given = each.default !== undefined && each.default !== null;
    return { name, schema: each, text: each.description, note: given ? `${written(each.default)} if left out` : sent && needed.has(name) ? "needed" : "" };
  }));
}

/** The name that a reference ends with. @param {string} reference */
export const nameOf = (reference) => reference.slice(reference.lastIndexOf("/") + 1);

/** The link to an object's section. */
export const link = (name) => el("a", { href: `#${name}` }, name);

const written = (value) => JSON.stringify(value);

function limits({ minimum, maximum, minLength, maxLength }) {
  const [low, high, unit] = minimum !== undefined || maximum !== undefined ? [minimum, maximum, ""] : [minLength, maxLength, " characters"];
  if (low === undefined && high === undefined) return "";
  return `, ${low === undefined ? "up to " : low}${high === undefined ? unit + " or more" : (low === undefined ? "" : " … ") + high + unit}`;
}

const joined = (lists, between) => lists.flatMap((list, k) => (k ? [between, ...list] : list));
