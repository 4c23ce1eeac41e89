/** The large pictures: a running job live, or the steps of an ended one under a scrubber. */

import { ActionBar } from "./actions.js";
import { byId, prefersReducedMotion, setText } from "../shared/dom.js";
import { pictures } from "../shared/pictures.js";
import { TileCanvas } from "../shared/canvas.js";
import { durationText, factsOf, formatNumber, queueText, titleOf } from "../shared/text.js";

const PLAY_MS = 2600; // from noise to picture
const HOLD_MS = 700; // at both ends
const REDUCED_MOTION_MS = 600; // between frames, if the visitor prefers reduced motion

export class Viewer {
  /** @type {import("./jobs.js").Entry | null} */
  entry = null;
  #position = 0; // index into the frames; their number stands for the finished pictures
  #pinned = false; // the visitor has moved the scrubber
  #drawnKey = "";
  #drawnAt = -Infinity;
  #timer = 0;
  #forward = false;
  #noise = { seed: 0, size: [28, 28] };

  /**
   * @param {import("./jobs.js").Jobs} jobs @param {import("./actions.js").JobActions} actions
   * @param {import("../shared/server.js").Server} server
   */
  constructor(jobs, actions, server) {
    this.jobs = jobs;
    this.server = server;
    this.xt = new TileCanvas(byId("xt"));
    this.x0 = new TileCanvas(byId("x0"));
    this.eps = new TileCanvas(byId("eps"));
    this.scrubber = byId("scrubber");
    this.actionBar = new ActionBar(byId("viewer-actions"), actions);
    this.scrubber.addEventListener("input", () => {
      this.stop();
      this.#moveTo(Number(this.scrubber.value));
      this.#pinned = this.#position < this.#newest; // at the end, new frames are followed again
    });
    byId("play").addEventListener("click", () => (this.#timer ? this.stop() : this.play()));
    byId("cancel").addEventListener("click", () => this.entry && jobs.cancel(this.entry));
  }

  /** Show a job. @param {import("./jobs.js").Entry | null} entry */
  choose(entry) {
    this.stop();
    this.entry = entry;
    this.#pinned = false;
    this.#drawnKey = "";
    if (entry?.ended) this.jobs.reloadFrames(entry);
    this.render();
  }

  /** Show the noise of a seed while no job is selected; `draw` is false while the opening film is shown. */
  preview(seed, model, draw = true) {
    this.#noise = { seed, size: this.server.size(model) };
    if (!this.entry && draw) {
      this.xt.noise(seed, this.#noise.size);
      this.#unknown();
    }
  }

  play() {
    byId("play").setAttribute("aria-pressed", "true");
    this.#forward = this.#position === 0;
    this.#tick();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    byId("play").setAttribute("aria-pressed", "false");
  }

  /** Called at most once per animation frame. */
  render() {
    const { entry } = this;
    if (!entry) return this.#empty();
    const { job } = entry;
    byId("viewer").dataset.state = entry.ended ? "ended" : "live";
    if (!this.#pinned) this.#position = this.#newest;
    byId("viewer").dataset.finished = String(entry.status === "succeeded" && this.#position >= entry.frames.length);
    byId("viewer").dataset.noise = entry.frames.length && !entry.frames.has("eps") ? "missing" : "shown";
    setText(byId("viewer-title"), titleOf(job));
    setText(byId("viewer-facts"), factsOf(job));
    this.#transport();
    this.#progress();
    this.#pictures();
    const canceled = document.activeElement === byId("cancel") && entry.ended;
    this.actionBar.show(entry);
    if (canceled) byId("viewer-actions").querySelector("button")?.focus();
    byId("cancel").hidden = entry.ended;
    const note = this.#note();
    setText(byId("viewer-note"), note.text);
    byId("viewer-note").dataset.kind = note.kind;
  }

  /** The last position: the finished pictures, or the newest frame. */
  get #newest() {
    const { frames, status } = this.entry;
    return status === "succeeded" ? frames.length : Math.max(0, frames.length - 1);
  }

  #empty() {
    if (this.#drawnKey === "empty") return;
    this.#drawnKey = "empty";
    byId("viewer").dataset.state = "empty";
    Object.assign(byId("viewer").dataset, { finished: "false", noise: "shown" });
    setText(byId("viewer-title"), "Every picture starts as noise");
    setText(byId("viewer-facts"), "Choose what it shows and generate: the noise clears step by step.");
    setText(byId("viewer-note"), "");
    this.actionBar.show(null);
    this.xt.noise(this.#noise.seed, this.#noise.size);
    this.#unknown();
  }

  /** Nothing is predicted yet. */
  #unknown() {
    this.x0.questionMark();
    this.eps.questionMark();
  }

  #transport() {
    const { frames, job, ended, canceling } = this.entry;
    byId("play").hidden = !(ended && frames.length > 0);
    byId("cancel").disabled = canceling;
    setText(byId("cancel"), canceling ? "Canceling" : "Cancel");
    const last = this.#newest;
    this.scrubber.max = String(Math.max(1, ended ? last : Math.max(last, this.#expected())));
    this.scrubber.disabled = frames.length < 2;
    this.scrubber.value = String(this.#position);
    this.scrubber.setAttribute("aria-valuetext", frames.length ? this.#positionText() : "no frames yet");
    const share = ended ? this.#position / Math.max(1, last) : job.progress.fraction;
    this.#ring(frames.length || !ended ? share : 0);
    setText(byId("percent"), ended ? "" : `${Math.round(100 * job.progress.fraction)}%`);
    this.#curve(ended);
  }

  /** The number of frames that a running job will have when it ends. */
  #expected() {
    const { frames, job } = this.entry;
    const every = frames.length > 1 ? frames.steps[1] - frames.steps[0] : Math.max(1, Math.ceil(job.progress.steps / 60));
    return Math.floor(job.progress.steps / every);
  }

  #curve(ended) {
    const { frames } = this.entry;
    const width = 100 * (Number(this.scrubber.value) / Number(this.scrubber.max));
    byId("past-rect").setAttribute("width", String(width));
    const finished = this.entry.status === "succeeded";
    const path = frames.curve(finished ? frames.length : this.#expected(), finished);
    for (const id of ["curve-all", "curve-past"]) if (byId(id).getAttribute("d") !== path) byId(id).setAttribute("d", path);
  }

  #ring(share) {
    byId("ring").setAttribute("aria-valuenow", String(Math.round(100 * share)));
    byId("ring").querySelector(".done").setAttribute("stroke-dasharray", `${100 * share} 100`);
  }

  #progress() {
    const { frames, job, ended, rate, status } = this.entry;
    const texts = { queued: queueText(job.queue_position), running: `step ${job.progress.step} of ${job.progress.steps}` };
    const positioned = frames.length && (ended || this.#pinned);
    setText(byId("step-text"), positioned ? this.#positionText() : ended ? capital(endText(status)) : capital(texts[job.status]) + (job.attempt > 1 ? ` · attempt ${job.attempt}` : ""));
    const stalled = ended || job.status === "queued" ? null : rate.stalledSeconds(performance.now());
    const seconds = stalled !== null ? null : job.status === "queued" ? (job.eta_seconds ?? null) : rate.secondsLeft(job.progress.steps - job.progress.step);
    const parts = [];
    if (stalled !== null) parts.push(`no progress for ${Math.round(stalled)} s; if its worker was lost, another one continues`);
    if (!ended && stalled === null && job.status === "running" && rate.evaluationsPerSecond) parts.push(`${Math.round(rate.evaluationsPerSecond)} evaluations/s`);
    if (!ended && seconds !== null) parts.push(seconds < 1 ? "almost done" : `${durationText(seconds)} left`);
    if (ended && job.timing?.running) parts.push(`${formatNumber(job.timing.running)} s · ${job.timing.evaluations} evaluations`);
    setText(byId("rate"), parts.join(" · "));
  }

  #positionText() {
    const { frames, job, status } = this.entry;
    if (this.#position >= frames.length) return `Finished · step ${job.progress.steps} of ${job.progress.steps} · noise σ 0`;
    const ended = this.#pinned || status === "succeeded" ? "" : `${endText(status)} · `;
    return capital(`${ended}step ${frames.steps[this.#position]} of ${job.progress.steps} · noise σ ${formatNumber(frames.sigmas[this.#position])}, t = ${Math.round(frames.times[this.#position])}`);
  }

  #note() {
    const { entry } = this;
    if (entry.note) return entry.note;
    if (entry.job.status === "failed") return { kind: "bad", text: `The job failed: ${entry.job.error?.message ?? "no reason is known"}.` };
    if (entry.missing) return { kind: "plain", text: "The server no longer has this job: it expired, or its data was removed. “Repeat” makes the same picture again." };
    return { kind: "plain", text: "" };
  }

  #pictures() {
    const { entry } = this;
    const { frames, job } = entry;
    const key = `${job.id} ${this.#position} ${frames.blobs.size} ${entry.status}`;
    const now = performance.now();
    if (key === this.#drawnKey || (prefersReducedMotion() && !entry.ended && now - this.#drawnAt < REDUCED_MOTION_MS)) return;
    [this.#drawnKey, this.#drawnAt] = [key, now];
    if (this.#position >= frames.length && job.images?.length && entry.status === "succeeded") {
      pictures(job).then((blobs) => this.#drawnKey === key && (this.xt.show(blobs), this.x0.show(blobs)));
      this.eps.blank();
    } else if (frames.length) {
      this.xt.show(frames.pictures("xt", this.#position, job.n));
      this.x0.show(frames.pictures("x0", this.#position, job.n));
      if (frames.has("eps")) this.eps.show(frames.pictures("eps", this.#position, job.n));
      else this.eps.blank();
    } else if (!entry.ended) {
      this.xt.noise(job.seed, this.server.size(job.model), job.n);
      this.#unknown();
    }
  }

  #moveTo(position) {
    this.#position = Math.max(0, Math.min(position, this.#newest));
    this.#pinned = true;
    this.render();
  }

  #tick() {
    const last = Number(this.scrubber.max);
    const next = this.#position + (this.#forward ? 1 : -1);
    if (next < 0 || next > last) this.#forward = !this.#forward;
    else this.#moveTo(next);
    const atEnd = this.#position === 0 || this.#position === last;
    const delay = prefersReducedMotion() ? REDUCED_MOTION_MS : Math.max(35, Math.min(160, PLAY_MS / Math.max(1, last)));
    this.#timer = setTimeout(() => this.#tick(), atEnd ? HOLD_MS : delay);
  }
}

const endText = (status) => ({ succeeded: "finished", failed: "failed", canceled: "canceled", missing: "no longer on the server" })[status] ?? status;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
