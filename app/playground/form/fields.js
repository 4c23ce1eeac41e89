/** The form fields that are built from the JSON Schema of `POST /generate`. */

import { byId, el, setText } from "../shared/dom.js";

/** Fields with their own element in the form, or that the form fills in itself. */
const OWN = ["model", "label", "prompt", "loras", "controls", "strength", "n", "seed", "sampler", "steps", "preview_every", "preview"];
const MAX_SLIDER_STEPS = 200;

/** Fields that the form has no element for: a job to vary, and where a webhook is sent. */
const NOT_OFFERED = ["variation", "webhook"];

/** The schema's properties that `Fields` shows, as [name, schema] pairs. */
const shown = (properties) =>
  Object.entries(properties).filter(([name, schema]) => !OWN.includes(name) && !NOT_OFFERED.includes(name) && !schema["x-picture"]);

/** A property's schema without null, which means the default. */
const typeOf = (schema) => (schema.anyOf ?? [schema]).find((each) => each.type !== "null");

export class Fields {
  /** @param {Record<string, any>} properties of the request's JSON Schema */
  constructor(properties) {
    this.schemas = new Map(shown(properties));
    byId("fields").replaceChildren(...[...this.schemas].map(([name, schema]) => fieldElement(name, schema)));
    for (const name of this.schemas.keys()) byId(name).addEventListener("change", () => this.#explain(name));
  }

  /** Set each field to the default of a model. @param {any} card */
  reset(card) {
    for (const name of this.schemas.keys()) this.set(name, this.#default(name, card) ?? "");
  }

  /** Set a field. A choice that the field does not offer is ignored. */
  set(name, value) {
    const field = byId(name);
    const text = String(value);
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === text)) return;
    field.value = text;
    const output = document.getElementById(`${name}-value`);
    if (output) setText(output, field.value);
    this.#explain(name);
  }

  /** Say what the chosen value of a list means. */
  #explain(name) {
    const meaning = this.schemas.get(name)["x-meanings"]?.[byId(name).value];
    const place = document.getElementById(`${name}-meaning`);
    if (place) setText(place, meaning ? `${byId(name).value}: ${meaning}` : "");
  }

  /** Set the fields in `values`; null leaves the default that `reset` set, except one that belongs to a named field. */
  load(values) {
    for (const [name, schema] of this.schemas) {
      const value = schema["x-default-with"] && values[schema["x-default-with"]] !== undefined ? values[name] ?? "" : values[name];
      if (value !== undefined && value !== null) this.set(name, value);
    }
  }

  /** Hide the fields that the server would refuse. @param {any} card @param {{conditioned: boolean, sampler: string}} choice */
  showApplicable(card, { conditioned, sampler }) {
    for (const [name, schema] of this.schemas) {
      const samplers = schema["x-samplers"];
      const guided = !name.startsWith("guidance_") || (card.guidance_embedded ? name === "guidance_scale" : conditioned && card.unconditional);
      const taken = !schema["x-input"] || (card.inputs ?? []).includes(name);
      byId(`${name}-field`).hidden = !guided || !taken || (card[samplers] && !card[samplers].includes(sampler));
    }
  }

  /**
   * The values that differ from a model's defaults, and those that belong together: a card's default of a field such as
   * the spacing applies only if the request leaves out the sampler, which the form always names.
   * @param {any} card
   */
  request(card) {
    const body = {}, values = new Map();
    for (const [name, schema] of this.schemas) {
      const value = parse(byId(name).value, typeOf(schema));
      if (!byId(`${name}-field`).hidden && value !== undefined) values.set(name, value);
    }
    if (values.get("guidance_scale") === 1) values.delete("guidance_interval"); // refused without guidance
    for (const [name, value] of values) {
      const named = this.schemas.get(name)["x-default-with"] || this.#isCompanion(name, card);
      if (named || value !== this.#default(name, card)) body[name] = value;
    }
    return body;
  }

  /** Whether the card has a default that applies only if the request leaves out this field. */
  #isCompanion(name, card) {
    return [...this.schemas].some(([other, schema]) => schema["x-default-with"] === name && (card.default[other] ?? null) !== null);
  }

  #default(name, card) {
    const schema = this.schemas.get(name);
    return schema["x-of-model"] || schema["x-default-with"] ? card.default[name] : schema.default;
  }
}

/** A label, an input for the allowed values, the description, and a place for an error. */
function fieldElement(name, schema) {
  const explained = Boolean(schema["x-meanings"]);
  const described = `${name}-hint ${explained ? `${name}-meaning ` : ""}${name}-error`;
  return el("div", { class: "field", id: `${name}-field` },
    el("label", { for: name }, schema.title),
    inputFor(name, schema, { id: name, "aria-describedby": described }),
    el("p", { class: "hint", id: `${name}-hint` }, capitalized(schema.description)),
    explained && el("p", { class: "hint", id: `${name}-meaning` }),
    el("p", { class: "error", id: `${name}-error` }));
}

function inputFor(name, schema, attributes) {
  const { type, enum: choices, minimum, maximum } = typeOf(schema);
  const optional = schema.default === null && !schema["x-of-model"];
  if (choices) return select(attributes, choices.map((choice) => [choice, choice]), optional);
  if (type === "boolean") return select(attributes, [["true", "on"], ["false", "off"]], optional);
  // A slider cannot be empty, so a field that may stay empty is a text field.
  if (optional || minimum === undefined || maximum === undefined) return el("input", { ...attributes, autocomplete: "off" });
  const output = el("output", { id: `${name}-value`, for: name });
  const step = type === "integer" ? 1 : sliderStep(maximum - minimum);
  const input = el("input", { ...attributes, type: "range", min: minimum, max: maximum, step, oninput: () => setText(output, input.value) });
  return el("div", { class: "with-value" }, input, output);
}

/** A drop-down list. `optional` adds an empty choice, which means the model's default. */
function select(attributes, choices, optional) {
  const offered = optional ? [["", "the model’s default"], ...choices] : choices;
  return el("select", attributes, ...offered.map(([value, text]) => el("option", { value }, text)));
}

/** 0.05 for 0 … 1, 0.1 for 1 … 20. */
const sliderStep = (range) => [0.05, 0.1, 0.5, 1].find((step) => range / step <= MAX_SLIDER_STEPS) ?? range / MAX_SLIDER_STEPS;

const capitalized = (text = "") => text.charAt(0).toUpperCase() + text.slice(1);

/** A field's text as a value of its type. Text that is not a number is returned as it is, for the server to reject. */
function parse(text, { type }) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  if (type === "array") return trimmed.split(",").map(parseNumber);
  if (type === "boolean") return trimmed === "true";
  return type === "string" ? trimmed : parseNumber(trimmed);
}

/** A field's text as a number. Other text is returned as it is, for the server to reject; no text gives undefined. */
export function parseNumber(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  return /^-?\d+(\.\d+)?$/.test(trimmed) ? Number(trimmed) : trimmed;
}
