/** The jobs of this browser as cards, newest first. Pictures are fetched when their card comes into view. */

import { entriesOf } from "./actions.js";
import { byId, el, menu, say } from "./dom.js";
import { pictures } from "./pictures.js";
import { Screen } from "./screen.js";
import { many, place, seedsOf, titleOf } from "./words.js";

export class Gallery {
  /** @type {Map<string, Card>} */
  #cards = new Map();

  /** @param {import("./jobs.js").Jobs} jobs @param {import("./actions.js").Deeds} deeds @param {(entry: any) => void} choose
   *  @param {import("./server.js").Server} server */
  constructor(jobs, deeds, choose, server) {
    Object.assign(this, { jobs, deeds, choose, server });
    this.list = byId("cards");
    this.observer = new IntersectionObserver((seen) => {
      for (const { target, isIntersecting } of seen) {
        const card = this.#cards.get(target.dataset.job);
        if (card) card.inView = isIntersecting;
        if (isIntersecting) card?.draw();
      }
    }, { rootMargin: "200px" });
  }

  /** Once an animation frame at most. @param {import("./jobs.js").Entry | null} chosen */
  render(chosen) {
    const entries = this.jobs.all;
    byId("gallery-empty").hidden = entries.length > 0;
    const there = new Set(entries.map((entry) => entry.job.id));
    for (const [id, card] of this.#cards) if (!there.has(id)) this.#drop(id, card);
    entries.forEach((entry, i) => {
      const card = this.#cards.get(entry.job.id) ?? this.#make(entry);
      if (this.list.children[i] !== card.item) this.list.insertBefore(card.item, this.list.children[i] ?? null);
      card.render(entry === chosen);
    });
  }

  #make(entry) {
    const card = new Card(entry, this);
    this.#cards.set(entry.job.id, card);
    this.observer.observe(card.item);
    return card;
  }

  #drop(id, card) {
    this.observer.unobserve(card.item);
    card.item.remove();
    this.#cards.delete(id);
  }
}

class Card {
  inView = false;
  #drawn = "";
  #offered = "";

  constructor(entry, gallery) {
    this.entry = entry;
    this.gallery = gallery;
    const canvas = el("canvas", { width: 28, height: 28, "aria-hidden": "true" });
    this.screen = new Screen(canvas);
    this.bar = el("span", { class: "bar" });
    this.badge = el("span", { class: "badge" });
    this.face = el("button", { type: "button", class: "face", onclick: () => gallery.choose(entry) }, canvas, this.badge, this.bar);
    this.title = el("strong", {}, titleOf(entry.job));
    this.small = el("small");
    this.about = el("div", { class: "about" }, this.title, this.small);
    this.item = el("li", { class: "card", "data-job": entry.job.id }, this.face, this.about);
  }

  render(current) {
    const { entry } = this;
    const { job, over, status } = entry;
    this.item.setAttribute("aria-current", String(current));
    this.bar.hidden = over;
    this.bar.style.transform = `scaleX(${job.progress.fraction})`;
    const badge = { failed: "failed", canceled: "canceled", lost: "gone" }[status] ?? (entry.gone ? "expired" : "");
    this.badge.hidden = !badge;
    say(this.badge, badge);
    say(this.small, over ? seedsOf(job) : job.status === "queued" ? place(job.queue_position) : `step ${job.progress.step} of ${job.steps}`);
    this.face.setAttribute("aria-label", `Show ${titleOf(job)}, ${seedsOf(job)}, ${many(job.n, "picture")}, ${status}`);
    this.#menu();
    if (this.inView) this.draw();
  }

  draw() {
    const { film, job, status, gone } = this.entry;
    const key = `${film.frames.size} ${status} ${gone}`;
    if (key === this.#drawn) return;
    this.#drawn = key;
    if (status === "succeeded" && !gone) pictures(job).then((found) => this.screen.show(found));
    else if (film.length) this.screen.show(film.pictures("x0", film.length - 1, job.n));
    else this.screen.noise(job.seed, this.gallery.server.size(job.model), job.n);
  }

  #menu() {
    const { entry, gallery } = this;
    const key = `${entry.status} ${entry.gone}`;
    if (key === this.#offered) return;
    this.#offered = key;
    this.about.querySelector(".menu")?.remove();
    this.about.append(menu("…", entriesOf(entry, gallery.deeds, gallery.jobs), { right: true, name: `More for ${titleOf(entry.job)}, ${seedsOf(entry.job)}` }));
  }
}
