/** The course "How it works": one card at a time, named by the URL's fragment, with the model that is running. */

import { announce, byId, el, setText } from "../shared/dom.js";
import { setUpLogin } from "../shared/login.js";
import { Server } from "../shared/server.js";
import * as storage from "../shared/storage.js";
import { outageText } from "../shared/text.js";
import { CARDS } from "./cards.js";
import { prose } from "./prose.js";
import { math } from "./tex.js";

const NARROW = "(max-width: 59.99rem)";

const server = new Server();
const progress = storage.loadProgress();
let mounted = new AbortController();
let shown = { id: "", model: "" };

const cardOf = (id) => CARDS.find((card) => card.id === id);

/** The card that the fragment names; without one, the last one of an earlier visit. */
const current = () => cardOf(location.hash.slice(1)) ?? cardOf(progress.last) ?? CARDS[0];

/** The models whose steps can be watched: a consistency model has no scores, and two steps. */
function models() {
  return server.models.filter((each) => !each.grid?.consistency?.length);
}

/** The card of the chosen model: the first of pixels if the visitor has not chosen one. */
function model() {
  const chosen = byId("model").value, offered = models();
  return offered.find((each) => each.name === chosen) ?? offered.find((each) => !each.latent) ?? offered[0] ?? null;
}

function show(card, { focus = true } = {}) {
  const index = CARDS.indexOf(card);
  shown = { id: card.id, model: model()?.name ?? "" };
  progress.last = card.id;
  storage.saveProgress(progress);
  document.title = `${card.title} – denoised`;
  setText(byId("place"), `Card ${index + 1} of ${CARDS.length}`);
  setText(byId("card-number"), `${index + 1} of ${CARDS.length}`);
  setText(byId("card-title"), card.title);
  byId("before").replaceChildren(...prose(card.before));
  byId("task").replaceChildren(...prose(card.task));
  byId("after").replaceChildren(...prose(filled(card.after)));
  byId("formula-list").replaceChildren(...card.formulas.flatMap(([source, text]) => [math(source, { display: true }), el("p", { class: "hint" }, ...prose(text))]));
  byId("read-on").href = `/playground/reading.html#${card.section}`;
  setText(byId("read-on"), `Read on: ${card.title}`);
  byId("previous").disabled = index === 0;
  setText(byId("next"), index === CARDS.length - 1 ? "To the playground" : `Next: ${CARDS[index + 1].title}`);
  showList();
  if (focus) {
    byId("card").focus({ preventScroll: true });
    scrollTo({ top: 0 });
    announce(`${index + 1} of ${CARDS.length}: ${card.title}`);
  }
  mount(card);
}

/** Numbers of the model in a text. */
function filled(text) {
  const { width, height, channels } = model() ?? { width: 28, height: 28, channels: 1 };
  return text.replace("{size}", `${width}×${height} pixels`).replace("{pixels}", String(width * height * channels));
}

function showList() {
  byId("list").replaceChildren(...CARDS.map((card) => el("li", { class: progress.done.includes(card.id) ? "done" : null },
    el("a", { href: `#${card.id}`, "aria-current": card.id === shown.id ? "step" : null }, card.title,
      progress.done.includes(card.id) && el("span", { class: "visually-hidden" }, " (done)")))));
}

function done(card) {
  if (progress.done.includes(card.id)) return;
  progress.done.push(card.id);
  storage.saveProgress(progress);
  showList();
}

/** Put a card's controls and pictures onto the stage; those of the card before are stopped. */
async function mount(card) {
  mounted.abort();
  mounted = new AbortController();
  const { signal } = mounted;
  const stage = byId("stage");
  stage.replaceChildren();
  stage.dataset.card = card.id;
  if (card.needsModel && !model()) return stage.append(el("p", { class: "hint waiting" }, outageText(server.state) ?? "Waiting for the server …"));
  const [{ mount: build }, { Network }] = await Promise.all([card.load(), import("./parts/network.js")]);
  if (signal.aborted) return undefined;
  const found = model();
  build(stage, { network: found && new Network(found, server), signal, done: () => done(card) });
  return undefined;
}

function showModels() {
  const offered = models();
  byId("model-field").hidden = offered.length < 2;
  const selected = model()?.name;
  byId("model").replaceChildren(...offered.map((each) => el("option", { value: each.name, selected: each.name === selected }, each.name)));
}

byId("previous").addEventListener("click", () => { location.hash = CARDS[CARDS.indexOf(current()) - 1].id; });
byId("next").addEventListener("click", () => {
  const after = CARDS[CARDS.indexOf(current()) + 1];
  if (after) location.hash = after.id;
  else location.href = "/";
});
byId("model").addEventListener("change", () => show(current(), { focus: false }));
addEventListener("hashchange", () => {
  if (!cardOf(location.hash.slice(1))) return; // "#card" of the skip link
  if (matchMedia(NARROW).matches) byId("contents").open = false;
  show(current());
});
server.addEventListener("change", () => {
  const text = server.state === "locked" ? null : outageText(server.state);
  byId("banner").hidden = !text;
  setText(byId("banner"), text ?? "");
  showModels();
  if ((model()?.name ?? "") !== shown.model) show(current(), { focus: false });
});
setUpLogin(server, () => {});
if (matchMedia(NARROW).matches) byId("contents").open = false;
show(current(), { focus: false });
server.run();
