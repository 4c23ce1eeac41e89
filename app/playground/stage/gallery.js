/** This browser's jobs as cards, newest first. Pictures are fetched when their card scrolls into view. */

import { menuItems } from "./actions.js";
import { byId, el, menu, setText } from "../shared/dom.js";
import { pictures } from "../shared/pictures.js";
import { TileCanvas } from "../shared/canvas.js";
import { cardFacts, plural, queueText, seedsOf, titleOf } from "../shared/text.js";

export class Gallery {
  /** @type {Map<string, Card>} */
  #cards = new Map();

  /** @param {import("./jobs.js").Jobs} jobs @param {import("./actions.js").JobActions} actions @param {(entry: any) => void} onChoose
   *  @param {import("../shared/server.js").Server} server */
  constructor(jobs, actions, onChoose, server) {
    Object.assign(this, { jobs, actions, onChoose, server });
    this.list = byId("cards");
    this.observer = new IntersectionObserver((changes) => {
      for (const { target, isIntersecting } of changes) {
        const card = this.#cards.get(target.dataset.job);
        if (card) card.inView = isIntersecting;
        if (isIntersecting) card?.draw();
      }
    }, { rootMargin: "200px" });
  }

  /** Called at most once per animation frame. @param {import("./jobs.js").Entry | null} selected */
  render(selected) {
    const entries = this.jobs.all;
    byId("gallery-empty").hidden = entries.length > 0;
    const ids = new Set(entries.map((entry) => entry.job.id));
    for (const [id, card] of this.#cards) if (!ids.has(id)) this.#remove(id, card);
    entries.forEach((entry, i) => {
      const card = this.#cards.get(entry.job.id) ?? this.#create(entry);
      if (this.list.children[i] !== card.item) this.list.insertBefore(card.item, this.list.children[i] ?? null);
      card.render(entry === selected);
    });
  }

  #create(entry) {
    const card = new Card(entry, this);
    this.#cards.set(entry.job.id, card);
    this.observer.observe(card.item);
    return card;
  }

  #remove(id, card) {
    this.observer.unobserve(card.item);
    card.item.remove();
    this.#cards.delete(id);
  }
}

class Card {
  inView = false;
  #drawnKey = "";
  #menuKey = "";

  constructor(entry, gallery) {
    this.entry = entry;
    this.gallery = gallery;
    const canvas = el("canvas", { width: 28, height: 28, "aria-hidden": "true" });
    this.tiles = new TileCanvas(canvas);
    this.bar = el("span", { class: "bar" });
    this.badge = el("span", { class: "badge" });
    this.thumbnail = el("button", { type: "button", class: "thumbnail", onclick: () => gallery.onChoose(entry) }, canvas, this.badge, this.bar);
    this.title = el("strong", {}, titleOf(entry.job));
    this.detail = el("small");
    this.caption = el("div", { class: "caption" }, this.title, this.detail);
    this.item = el("li", { class: "card", "data-job": entry.job.id }, this.thumbnail, this.caption);
  }

  render(current) {
    const { entry } = this;
    const { job, ended, status } = entry;
    this.item.setAttribute("aria-current", String(current));
    this.bar.hidden = ended;
    this.bar.style.transform = `scaleX(${job.progress.fraction})`;
    const badge = { failed: "failed", canceled: "canceled", missing: "missing" }[status] ?? (entry.missing ? "expired" : "");
    this.badge.hidden = !badge;
    setText(this.badge, badge);
    setText(this.detail, ended ? cardFacts(job) : job.status === "queued" ? queueText(job.queue_position) : `step ${job.progress.step} of ${job.progress.steps}`);
    this.thumbnail.setAttribute("aria-label", `Show ${titleOf(job)}, ${cardFacts(job).replaceAll("\n", ", ")}, ${plural(job.n, "picture")}, ${status}`);
    this.#menu();
    if (this.inView) this.draw();
  }

  draw() {
    const { frames, job, status, missing } = this.entry;
    const key = `${frames.blobs.size} ${status} ${missing}`;
    if (key === this.#drawnKey) return;
    this.#drawnKey = key;
    if (status === "succeeded" && !missing) pictures(job).then((blobs) => this.tiles.show(blobs));
    else if (frames.length) this.tiles.show(frames.pictures("x0", frames.length - 1, job.n));
    else this.tiles.noise(job.seed, this.gallery.server.size(job.model), job.n);
  }

  #menu() {
    const { entry, gallery } = this;
    const key = `${entry.status} ${entry.missing}`;
    if (key === this.#menuKey) return;
    this.#menuKey = key;
    this.caption.querySelector(".menu")?.remove();
    this.caption.append(menu("…", menuItems(entry, gallery.actions, gallery.jobs), { right: true, name: `More actions for ${titleOf(entry.job)}, ${seedsOf(entry.job)}` }));
  }
}
