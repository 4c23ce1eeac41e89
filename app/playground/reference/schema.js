/** JSON Schema as text: types, ranges, and the properties of objects. */

import { el } from "../shared/dom.js";

/** Paragraphs of text, with `code` marked up. @param {string} [text] */
export function paragraphs(text = "") {
  return text.split(/\n\s*\n/).filter((part) => part.trim()).map((part) => el("p", {}, ...inlineCode(part)));
}

/** One line of text, with `code` marked up. */
export const inlineCode = (text) => text.split("`").map((part, k) => (k % 2 ? el("code", {}, part) : part));

/** A schema's type as nodes; named objects are links. @returns {(Node|string)[]} */
export function typeOf(schema) {
  if (schema.$ref) return [link(nameOf(schema.$ref))];
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return joined(choices.map(typeOf), " or ");
  if (schema.allOf) return joined(schema.allOf.map(typeOf), " and ");
  if ("const" in schema) return [json(schema.const)];
  if (schema.enum) return joined(schema.enum.map((each) => [json(each)]), ", ");
  if (schema.type === "array") return ["list of ", ...typeOf(schema.items ?? {})];
  if (schema.type === "object" && schema.additionalProperties instanceof Object) return ["object of ", ...typeOf(schema.additionalProperties)];
  return [schema.type ?? "anything", limits(schema)];
}

/** A list of fields with name, type and description. Each row is { name, schema, text, note, values }; `values` are pairs of a value and its meaning. */
export function fieldList(rows) {
  return el("ul", { class: "fields" }, ...rows.map(({ name, schema, text, note, values }) =>
    el("li", {},
      el("p", {}, el("code", {}, name), " ", el("span", { class: "hint" }, ...(schema ? typeOf(schema) : []), note ? ` · ${note}` : "")),
      text ? el("p", { class: "what" }, ...inlineCode(text)) : null,
      values ? el("dl", { class: "values" }, ...values.map(([value, meaning]) => el("div", {}, el("dt", {}, el("code", {}, value)), el("dd", {}, meaning)))) : null)));
}

/** The properties of an object. In a request body, required ones are marked. */
export function propertyList(schema, { inRequest = false } = {}) {
  const required = new Set(schema.required ?? []);
  return fieldList(Object.entries(schema.properties ?? {}).map(([name, each]) => {
    const hasDefault = each.default !== undefined && each.default !== null;
    return { name, schema: each, text: each.description, values: meaningsOf(each), note: each["x-of-model"] || each["x-default-with"] ? "default: the model’s" : hasDefault ? `default ${json(each.default)}` : inRequest && required.has(name) ? "required" : "" };
  }));
}

/** The allowed values in the order of the schema, each with its meaning; undefined without meanings. */
function meaningsOf(schema) {
  const meanings = schema["x-meanings"];
  return meanings && (schema.anyOf ?? [schema]).flatMap((each) => each.enum ?? []).map((value) => [value, meanings[value]]);
}

/** The last part of a `$ref`. @param {string} reference */
export const nameOf = (reference) => reference.slice(reference.lastIndexOf("/") + 1);

/** The link to an object's section. */
export const link = (name) => el("a", { href: `#${name}` }, name);

const DEEPEST = 4; // level of objects inside objects of an example

/** A value of a schema's shape, for people to see what a response looks like. */
export function exampleOf(schema, document, depth = 0) {
  if (schema.$ref) return depth > DEEPEST ? {} : exampleOf(document.components.schemas[nameOf(schema.$ref)], document, depth + 1);
  if (schema.examples?.length) return schema.examples[0];
  if ("const" in schema) return schema.const;
  if ("default" in schema) return schema.default;
  if (schema.enum) return schema.enum[0];
  const choices = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (choices) return exampleOf(choices[0], document, depth);
  if (schema.type === "array") return [exampleOf(schema.items ?? {}, document, depth)];
  if (schema.properties) return Object.fromEntries(Object.entries(schema.properties).map(([name, each]) => [name, exampleOf(each, document, depth)]));
  return { string: "…", integer: schema.minimum ?? 1, number: schema.minimum ?? 0.5, boolean: true, object: {} }[schema.type] ?? null;
}

const json = (value) => JSON.stringify(value);

function limits({ minimum, maximum, minLength, maxLength }) {
  const [low, high, unit] = minimum !== undefined || maximum !== undefined ? [minimum, maximum, ""] : [minLength, maxLength, " characters"];
  if (low === undefined && high === undefined) return "";
  return `, ${low === undefined ? "up to " : low}${high === undefined ? unit + " or more" : (low === undefined ? "" : " … ") + high + unit}`;
}

const joined = (lists, between) => lists.flatMap((list, k) => (k ? [between, ...list] : list));
