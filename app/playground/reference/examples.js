/** An operation's request in curl, Python and JavaScript, with buttons that copy it, and a form that sends it. */

import { request } from "../shared/api.js";
import { el, setText } from "../shared/dom.js";
import { curl } from "./curl.js";

const LANGUAGES = ["curl", "Python", "JavaScript"];
const MAX_SHOWN = 4000; // characters of a response

/** @typedef {{method: string, path: string, body: any, example: any, needsKey: boolean}} Call */

/** Examples under tabs, with a copy button. @param {Call} call */
export function examples(call) {
  const code = el("code");
  const copied = el("span", { class: "hint", role: "status" });
  const texts = { curl: curl(call.method, call.path, call.body, call.example, call.needsKey), Python: python(call), JavaScript: javascript(call) };
  const show = (language) => {
    code.textContent = texts[language];
    setText(copied, "");
    for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.textContent === language));
  };
  const tabs = LANGUAGES.map((language) => el("button", { type: "button", class: "tab", "aria-pressed": "false", onclick: () => show(language) }, language));
  const copy = el("button", { type: "button", class: "tab copy", onclick: async () => {
    const done = await navigator.clipboard.writeText(code.textContent).then(() => true, () => false);
    setText(copied, done ? "Copied." : "This browser does not let the page copy.");
  } }, "Copy");
  const box = el("div", { class: "example-box" }, el("div", { class: "tabs", role: "group", "aria-label": "Language" }, ...tabs, copy, copied), el("pre", { tabindex: 0 }, code));
  show("curl");
  return box;
}

const isJson = (body) => Object.keys(body?.content ?? {})[0] === "application/json";
const filledPath = (path, open, close) => path.replace(/\{(\w+)\}/g, (_, name) => `${open}${name}${close}`);

function python({ method, path, body, example, needsKey }) {
  const headers = needsKey ? ', headers={"Authorization": f"Bearer {os.environ[\'DENOISED_API_KEY\']}"}' : "";
  const sent = !body ? "" : isJson(body) ? `, json=${pythonLiteral(example ?? {})}` : ', content=open("picture.png", "rb").read()';
  const url = /\{/.test(path) ? `f"${filledPath(path, "{", "}")}"` : JSON.stringify(path);
  return `${needsKey ? "import os\n\n" : ""}import httpx\n\nclient = httpx.Client(base_url=${JSON.stringify(location.origin)}${headers})\nresponse = client.${method}(${url}${sent})\nresponse.raise_for_status()\nprint(response.text)`;
}

const pythonLiteral = (value) => JSON.stringify(value).replaceAll(/\b(true|false|null)\b/g, (word) => ({ true: "True", false: "False", null: "None" })[word] ?? word);

function javascript({ method, path, body, example, needsKey }) {
  const headers = [needsKey && "Authorization: `Bearer ${key}`", body && isJson(body) && '"Content-Type": "application/json"'].filter(Boolean);
  const options = [method !== "get" && `method: "${method.toUpperCase()}"`, headers.length && `headers: { ${headers.join(", ")} }`,
    body && (isJson(body) ? `body: JSON.stringify(${JSON.stringify(example ?? {})})` : "body: picture")].filter(Boolean);
  const url = /\{/.test(path) ? `\`${location.origin}${filledPath(path, "${", "}")}\`` : JSON.stringify(location.origin + path);
  return `const response = await fetch(${url}${options.length ? `, { ${options.join(", ")} }` : ""});\nif (!response.ok) throw new Error(await response.text());\nconsole.log(await response.text());`;
}

/** A form that sends the request from this page; null for operations that change or need more than a form has. @param {Call & {parameters: any[]}} call */
export function trial({ method, path, parameters, example }) {
  const isGenerate = method === "post" && path === "/generate";
  if (method !== "get" && !isGenerate) return null;
  const fields = parameters.filter((each) => ["path", "query"].includes(each.in)).map(({ name, in: place, required }) => ({ name, place, required,
    input: el("input", { id: `try-${method}-${path}-${name}`, autocomplete: "off", required: Boolean(required) }) }));
  const area = isGenerate ? el("textarea", { rows: 4, "aria-label": "Body", spellcheck: false }) : null;
  if (area) area.value = JSON.stringify(example ?? {});
  const answer = el("div", { class: "answer", role: "status" });
  const send = async (event) => {
    event.preventDefault();
    answer.replaceChildren(el("p", { class: "hint" }, "Waiting for the answer …"));
    try {
      answer.replaceChildren(...await shown(await request(urlOf(path, fields), isGenerate ? { method: "POST", body: area.value, headers: { "Content-Type": "application/json", Accept: "image/png" }, timeout: 60_000 } : {})));
    } catch (error) {
      answer.replaceChildren(el("p", { class: "error" }, error.message));
    }
  };
  return el("form", { class: "trial", onsubmit: send },
    ...fields.map(({ name, place, input }) => el("div", { class: "field" }, el("label", { for: input.id }, `${name} (${place})`), input)),
    area, el("button", { class: "quiet" }, "Send"), answer);
}

function urlOf(path, fields) {
  const filled = path.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(fields.find((each) => each.name === name)?.input.value ?? ""));
  const query = new URLSearchParams(fields.filter((each) => each.place === "query" && each.input.value).map((each) => [each.name, each.input.value]));
  return filled + (query.size ? `?${query}` : "");
}

/** A response: its status, and its text or picture. @param {Response} response */
async function shown(response) {
  const type = (response.headers.get("Content-Type") ?? "").split(";")[0];
  const head = el("p", { class: "hint" }, `${response.status} · ${type}`);
  if (type.startsWith("image/")) {
    const picture = el("img", { alt: "The picture in the response" });
    picture.src = URL.createObjectURL(await response.blob());
    return [head, picture];
  }
  if (type === "text/event-stream") return [head, el("p", { class: "hint" }, "This is a stream; see the examples.")];
  const text = await response.text();
  const pretty = type.endsWith("json") ? JSON.stringify(JSON.parse(text), null, 2) : text;
  return [head, el("pre", { tabindex: 0 }, el("code", {}, pretty.length > MAX_SHOWN ? `${pretty.slice(0, MAX_SHOWN)}\n…` : pretty))];
}
