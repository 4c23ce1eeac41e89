/** The API page: `/openapi.json` for people to read. */

import { json, key } from "../shared/api.js";
import { announce, byId, el, setText } from "../shared/dom.js";
import { examples, trial } from "./examples.js";
import { exampleOf, fieldList, nameOf, paragraphs, propertyList, typeOf } from "./schema.js";

const RETRY_MS = 2000; // between two tries while the server does not respond

async function load() {
  try {
    show(await json("/openapi.json"));
  } catch (error) {
    if (error.status === 401) return showLogin(error);
    showBanner(error.message);
    setTimeout(load, RETRY_MS);
  }
}

function showBanner(text) {
  byId("banner").hidden = !text;
  setText(byId("banner"), text);
}

function showLogin(error) {
  showBanner("");
  byId("login").hidden = false;
  setText(byId("login-error"), key.get() ? error.message : "");
  key.clear();
  byId("key").focus();
}

function show(document) {
  showBanner("");
  byId("login").hidden = true;
  byId("about").replaceChildren(el("p", { class: "facts" }, `Version ${document.info.version}`), ...paragraphs(document.info.description));
  const operations = operationsOf(document);
  const groups = Map.groupBy(operations, (operation) => operation.group);
  const objects = Object.entries(document.components?.schemas ?? {});
  byId("operations").replaceChildren(
    ...[...groups].map(([name, list]) => section(name, list.map((operation) => describe(operation, document)))),
    section("objects", objects.map(([name, schema]) => describeObject(name, schema))),
  );
  byId("search").addEventListener("input", search);
  search(); // for what was typed before the operations were there
  announce(`${operations.length} operations`);
  openFragment();
}

/** All operations in the order of the document, each with its method, path and group. */
function operationsOf(document) {
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
    ...paragraphs(description),
    ...part("Request", examples({ method, path, body: requestBody, example, needsKey: Boolean(operation.security) })),
    ...part("Try it", trial({ method, path, parameters, example })),
    ...part("Parameters", parameters.length && fieldList(parameters.map(describeParameter))),
    ...types.flatMap(([type, { schema }]) => part(`Body: ${type}`, describeBody(schema, document))),
    ...(path === "/generate" ? part("Values of sampler", samplerList()) : []),
    ...part("Shape of the response", responseExample(responses, document)),
    ...part("Responses", fieldList(Object.entries(responses).sort().map(describeResponse))),
  );
}

const part = (title, content) => (content ? [el("h3", {}, title), content] : []);

/** The samplers of the first model, each with what it is good for; filled when the server has answered. */
function samplerList() {
  const list = el("div");
  json("/models").then(([card]) => card && list.replaceChildren(fieldList(Object.entries(card.sampler_descriptions).map(([name, text]) => ({ name, text })))), () => {});
  return list;
}

/** The first successful JSON response with made-up values; null if there is none. */
function responseExample(responses, document) {
  const [, found] = Object.entries(responses).sort().find(([status, { content }]) => status < "300" && content?.["application/json"]?.schema) ?? [];
  const schema = found?.content["application/json"].schema;
  return schema && Object.keys(schema).length ? el("pre", { tabindex: 0 }, el("code", {}, JSON.stringify(exampleOf(schema, document), null, 1))) : null;
}

const describeParameter = ({ name, in: where, required, schema, description }) =>
  ({ name, schema, text: description, note: `${where}${required ? ", required" : ""}` });

function describeBody(schema, document) {
  const named = resolved(schema, document);
  return named?.properties ? propertyList(named, { inRequest: true }) : el("p", { class: "hint" }, ...typeOf(schema ?? {}));
}

function describeResponse([status, { description, content = {} }]) {
  const types = Object.entries(content);
  const named = types.map(([, { schema }]) => schema).find((schema) => schema?.$ref);
  return { name: status, schema: named, text: description, note: types.map(([type]) => type).join(", ") };
}

const resolved = (schema, document) => (schema?.$ref ? document.components.schemas[nameOf(schema.$ref)] : schema);

function describeObject(name, schema) {
  return el("details", { class: "operation panel", id: name },
    el("summary", {}, el("code", { class: "path" }, name)),
    ...paragraphs(schema.description),
    schema.properties ? propertyList(schema) : el("p", {}, ...typeOf(schema)));
}

/** Show the operations and objects whose text contains every word of the search. */
function search() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const group of document.querySelectorAll(".group")) {
    for (const each of group.querySelectorAll("details")) {
      each.hidden = !words.every((word) => each.textContent.toLowerCase().includes(word));
      if (!each.hidden) count += 1;
    }
    group.hidden = !group.querySelector("details:not([hidden])");
  }
  setText(byId("found"), words.length ? `${count} found` : "");
}

/** Open the operation or object that the URL's fragment names. */
function openFragment() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!named?.matches("details")) return;
  named.open = true;
  named.scrollIntoView();
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  load();
});
addEventListener("hashchange", openFragment);
load();
