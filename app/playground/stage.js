/** The large pictures: one job live, or its film under a scrubber. */

import { Actions } from "./actions.js";
import { byId, calm, say } from "./dom.js";
import { pictures } from "./pictures.js";
import { Screen } from "./screen.js";
import { about, factsOf, place as placeWords, plain, titleOf } from "./words.js";

const FILM_MS = 2600; // from noise to the picture
const REST_MS = 700; // at both ends
const CALM_MS = 600; // between frames, where little motion is asked for

export class Stage {
  /** @type {import("./jobs.js").Entry | null} */
  entry = null;
  #place = 0; // of the film; its length stands for the finished pictures
  #pinned = false; // the visitor has moved the scrubber
  #shown = "";
  #drawnAt = -Infinity;
  #timer = 0;
  #forward = false;
  #noise = { seed: 0, size: [28, 28] };

  /**
   * @param {import("./jobs.js").Jobs} jobs @param {import("./actions.js").Deeds} deeds
   * @param {import("./server.js").Server} server
   */
  constructor(jobs, deeds, server) {
    this.jobs = jobs;
    this.server = server;
    this.seen = new Screen(byId("seen"));
    this.believed = new Screen(byId("believed"));
    this.scrubber = byId("scrubber");
    this.actions = new Actions(byId("stage-actions"), deeds);
    this.scrubber.addEventListener("input", () => {
      this.stop();
      this.#moveTo(Number(this.scrubber.value));
      this.#pinned = this.#place < this.#newest; // at the end, what comes is followed again
    });
    byId("play").addEventListener("click", () => (this.#timer ? this.stop() : this.play()));
    byId("cancel").addEventListener("click", () => this.entry && jobs.cancel(this.entry));
  }

  /** Show a job. @param {import("./jobs.js").Entry | null} entry */
  choose(entry) {
    this.stop();
    this.entry = entry;
    this.#pinned = false;
    this.#shown = "";
    if (entry?.over) this.jobs.refilm(entry);
    this.render();
  }

  /** Noise for a seed, while there is nothing else to show. */
  preview(seed, model) {
    this.#noise = { seed, size: this.server.size(model) };
    if (!this.entry) this.seen.noise(seed, this.#noise.size);
  }

  play() {
    byId("play").setAttribute("aria-pressed", "true");
    this.#forward = this.#place === 0;
    this.#tick();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    byId("play").setAttribute("aria-pressed", "false");
  }

  /** Once an animation frame at most. */
  render() {
    const { entry } = this;
    if (!entry) return this.#empty();
    const { film, job } = entry;
    byId("stage").dataset.state = entry.over ? "over" : "live";
    if (!this.#pinned) this.#place = this.#newest;
    say(byId("stage-title"), titleOf(job));
    say(byId("stage-facts"), factsOf(job));
    this.#transport();
    this.#words();
    this.#pictures();
    const canceled = document.activeElement === byId("cancel") && entry.over;
    this.actions.offer(entry);
    if (canceled) byId("stage-actions").querySelector("button")?.focus();
    byId("cancel").hidden = entry.over;
    const note = this.#note();
    say(byId("stage-note"), note.text);
    byId("stage-note").dataset.kind = note.kind;
  }

  /** The last place of the film: the finished pictures, or the newest frame. */
  get #newest() {
    const { film, status } = this.entry;
    return status === "succeeded" ? film.length : Math.max(0, film.length - 1);
  }

  #empty() {
    if (this.#shown === "empty") return;
    this.#shown = "empty";
    byId("stage").dataset.state = "empty";
    say(byId("stage-title"), "Every picture starts as noise");
    say(byId("stage-facts"), "Choose a label and generate: the noise clears step by step.");
    say(byId("stage-note"), "");
    this.actions.offer(null);
    this.seen.noise(this.#noise.seed, this.#noise.size);
    this.believed.riddle();
  }

  #transport() {
    const { film, job, over, canceling } = this.entry;
    const done = over && film.length > 0;
    byId("play").hidden = !done;
    byId("cancel").disabled = canceling;
    say(byId("cancel"), canceling ? "Canceling" : "Cancel");
    const last = this.#newest;
    this.scrubber.max = String(Math.max(1, over ? last : Math.max(last, this.#expected())));
    this.scrubber.disabled = film.length < 2;
    this.scrubber.value = String(this.#place);
    this.scrubber.setAttribute("aria-valuetext", film.length ? this.#placeWords() : "no film yet");
    const share = over ? this.#place / Math.max(1, last) : job.progress.fraction;
    this.#ring(film.length || !over ? share : 0);
    say(byId("percent"), over ? "" : `${Math.round(100 * job.progress.fraction)}%`);
    this.#curve(over);
  }

  /** How many frames a running job will have in the end. */
  #expected() {
    const { film, job } = this.entry;
    const every = film.length > 1 ? film.steps[1] - film.steps[0] : Math.max(1, Math.ceil(job.steps / 60));
    return Math.floor(job.steps / every);
  }

  #curve(over) {
    const { film } = this.entry;
    const width = 100 * (Number(this.scrubber.value) / Number(this.scrubber.max));
    byId("past-rect").setAttribute("width", String(width));
    const path = film.curve(over ? film.length : this.#expected());
    for (const id of ["curve-all", "curve-past"]) if (byId(id).getAttribute("d") !== path) byId(id).setAttribute("d", path);
  }

  #ring(share) {
    byId("ring").setAttribute("aria-valuenow", String(Math.round(100 * share)));
    byId("ring").querySelector(".done").setAttribute("stroke-dasharray", `${100 * share} 100`);
  }

  #words() {
    const { film, job, over, pace, status } = this.entry;
    const words = { queued: placeWords(job.queue_position), running: `step ${job.progress.step} of ${job.steps}` };
    const placed = film.length && (over || this.#pinned);
    say(byId("where"), placed ? this.#placeWords() : over ? capital(endWords(status)) : capital(words[job.status]) + (job.attempt > 1 ? ` · attempt ${job.attempt}` : ""));
    const seconds = job.status === "queued" ? (job.eta_seconds ?? null) : pace.seconds(job.steps - job.progress.step);
    const parts = [];
    if (!over && pace.evaluations) parts.push(`${Math.round(pace.evaluations)} evaluations/s`);
    if (!over && seconds !== null) parts.push(seconds < 1 ? "almost done" : `${about(seconds)} left`);
    if (over && job.timing?.running) parts.push(`${plain(job.timing.running)} s · ${job.timing.evaluations} evaluations`);
    say(byId("pace"), parts.join(" · "));
  }

  #placeWords() {
    const { film, job, status } = this.entry;
    if (this.#place >= film.length) return `Finished · step ${job.steps} of ${job.steps} · noise σ 0`;
    const ended = this.#pinned || status === "succeeded" ? "" : `${endWords(status)} · `;
    return capital(`${ended}step ${film.steps[this.#place]} of ${job.steps} · noise σ ${plain(film.sigmas[this.#place])}`);
  }

  #note() {
    const { entry } = this;
    if (entry.note) return entry.note;
    if (entry.job.status === "failed") return { kind: "bad", text: `It failed: ${entry.job.error?.message ?? "no reason is known"}.` };
    if (entry.gone) return { kind: "plain", text: "The server no longer has this job: it expired, or its data was removed. “Again” makes the same picture anew." };
    return { kind: "plain", text: "" };
  }

  #pictures() {
    const { entry } = this;
    const { film, job } = entry;
    const key = `${job.id} ${this.#place} ${film.frames.size} ${entry.status}`;
    const now = performance.now();
    if (key === this.#shown || (calm() && !entry.over && now - this.#drawnAt < CALM_MS)) return;
    [this.#shown, this.#drawnAt] = [key, now];
    if (this.#place >= film.length && job.images?.length && entry.status === "succeeded") {
      pictures(job).then((found) => this.#shown === key && (this.seen.show(found), this.believed.show(found)));
    } else if (film.length) {
      this.seen.show(film.pictures("xt", this.#place, job.n));
      this.believed.show(film.pictures("x0", this.#place, job.n));
    } else if (!entry.over) {
      this.seen.noise(job.seed, this.server.size(job.model), job.n);
      this.believed.riddle();
    }
  }

  #moveTo(place) {
    this.#place = Math.max(0, Math.min(place, this.#newest));
    this.#pinned = true;
    this.render();
  }

  #tick() {
    const last = Number(this.scrubber.max);
    const next = this.#place + (this.#forward ? 1 : -1);
    if (next < 0 || next > last) this.#forward = !this.#forward;
    else this.#moveTo(next);
    const atEnd = this.#place === 0 || this.#place === last;
    const each = calm() ? CALM_MS : Math.max(35, Math.min(160, FILM_MS / Math.max(1, last)));
    this.#timer = setTimeout(() => this.#tick(), atEnd ? REST_MS : each);
  }
}

const endWords = (status) => ({ succeeded: "finished", failed: "failed", canceled: "canceled", lost: "no longer on the server" })[status] ?? status;
const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);
