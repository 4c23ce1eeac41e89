/** The page of the API: what `/openapi.json` says, for people. */

import { json, key } from "./api.js";
import { curl } from "./curl.js";
import { announce, byId, el, say } from "./dom.js";
import { fields, kind, members, nameOf, prose } from "./schema.js";

const AGAIN_MS = 2000; // between two tries while the server is away

async function load() {
  try {
    show(await json("/openapi.json"));
  } catch (error) {
    if (error.status === 401) return lock(error);
    tell(error.message);
    setTimeout(load, AGAIN_MS);
  }
}

function tell(words) {
  byId("banner").hidden = !words;
  say(byId("banner"), words);
}

function lock(refusal) {
  tell("");
  byId("door").hidden = false;
  say(byId("door-error"), key.get() ? refusal.message : "");
  key.forget();
  byId("key").focus();
}

function show(document) {
  tell("");
  byId("door").hidden = true;
  byId("about").replaceChildren(el("p", { class: "facts" }, `Version ${document.info.version}`), ...prose(document.info.description));
  const operations = every(document);
  const groups = Map.groupBy(operations, (operation) => operation.group);
  const objects = Object.entries(document.components?.schemas ?? {});
  byId("operations").replaceChildren(
    ...[...groups].map(([name, list]) => section(name, list.map((operation) => describe(operation, document)))),
    section("objects", objects.map(([name, schema]) => object(name, schema))),
  );
  announce(`${operations.length} operations`);
  reveal();
}

/** All operations in the document's order, each with its method, path and group. */
function every(document) {
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ ...operation, method, path, group: operation.tags?.[0] ?? "others" })));
}

const section = (name, children) => el("section", { class: "group", "aria-label": name }, el("h2", {}, name), ...children);

function describe(operation, document) {
  const { method, path, summary, description, parameters = [], requestBody, responses } = operation;
  const types = Object.entries(requestBody?.content ?? {});
  const example = types.map(([, { schema }]) => resolved(schema, document)?.examples?.[0]).find(Boolean);
  return el("details", { class: "operation panel", id: operation.operationId },
    el("summary", {}, el("code", { class: "method" }, method.toUpperCase()), " ", el("code", { class: "path" }, path), " ", el("span", { class: "hint" }, summary ?? "")),
    ...prose(description),
    ...part("Parameters", parameters.length && fields(parameters.map(parameter))),
    ...types.flatMap(([type, { schema }]) => part(`Body: ${type}`, body(schema, document))),
    ...part("Answers", fields(Object.entries(responses).sort().map(answer))),
    ...part("From a shell", el("pre", {}, el("code", {}, curl(method, path, requestBody, example, Boolean(operation.security))))),
  );
}

const part = (words, content) => (content ? [el("h3", {}, words), content] : []);

const parameter = ({ name, in: where, required, schema, description }) =>
  ({ name, schema, text: description, note: `${where}${required ? ", needed" : ""}` });

function body(schema, document) {
  const named = resolved(schema, document);
  return named?.properties ? members(named, { sent: true }) : el("p", { class: "hint" }, ...kind(schema ?? {}));
}

function answer([status, { description, content = {} }]) {
  const types = Object.entries(content);
  const named = types.map(([, { schema }]) => schema).find((schema) => schema?.$ref);
  return { name: status, schema: named, text: description, note: types.map(([type]) => type).join(", ") };
}

const resolved = (schema, document) => (schema?.$ref ? document.components.schemas[nameOf(schema.$ref)] : schema);

function object(name, schema) {
  return el("details", { class: "operation panel", id: name },
    el("summary", {}, el("code", { class: "path" }, name)),
    ...prose(schema.description),
    schema.properties ? members(schema) : el("p", {}, ...kind(schema)));
}

/** Open what the address names. */
function reveal() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!named?.matches("details")) return;
  named.open = true;
  named.scrollIntoView();
}

byId("door").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  load();
});
addEventListener("hashchange", reveal);
load();
