/** The jobs of this browser: what was asked, how far they are, the frames that came. */

import * as api from "./api.js";
import { follow } from "./events.js";
import { Film } from "./film.js";
import { Pace } from "./pace.js";
import * as shelf from "./shelf.js";

const LISTED = 100;
const TERMINAL = ["succeeded", "failed", "canceled"];

/** A job and what this page knows of it. */
export class Entry {
  film = new Film();
  pace = new Pace();
  /** @type {{kind: "plain" | "good" | "bad", text: string} | null} */
  note = null;
  seq = 0;
  gone = false; // the server no longer has it
  canceling = false;
  filmed = false; // all of its events have come
  gapped = false; // frames were skipped, since this browser was slow
  /** @type {AbortController | null} */
  following = null;

  constructor(job) {
    this.job = job;
  }

  get over() {
    return TERMINAL.includes(this.job.status) || this.gone;
  }

  get status() {
    return this.gone && !TERMINAL.includes(this.job.status) ? "lost" : this.job.status;
  }
}

/** `change` is sent when any entry is other than before, `milestone` (with `detail`) when one began or ended. */
export class Jobs extends EventTarget {
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  #server;

  /** @param {import("./server.js").Server} server */
  constructor(server) {
    super();
    this.#server = server;
    this.#take();
    shelf.onElsewhere(() => this.#take());
  }

  /** Newest first. */
  get all() {
    return [...this.#entries.values()].sort((a, b) => b.job.created_at - a.job.created_at);
  }

  get live() {
    return this.all.filter((entry) => !entry.over);
  }

  get(id) {
    return this.#entries.get(id) ?? null;
  }

  /** Post a job. */
  async start(body, idempotencyKey) {
    const job = await api.generate(body, idempotencyKey);
    const entry = this.get(job.id) ?? this.#add(job);
    shelf.keep(job);
    this.#follow(entry);
    this.#changed();
    return entry;
  }

  async cancel(entry) {
    entry.canceling = true;
    this.#changed();
    try {
      this.#update(entry, await api.cancel(entry.job.id));
    } catch (error) {
      if (error.status === 409) this.#update(entry, await api.json(`/jobs/${entry.job.id}`));
      else entry.note = { kind: "bad", text: error.message };
    } finally {
      entry.canceling = false;
      this.#changed();
    }
  }

  /** Take a job off this browser's list; the server keeps it until it expires. */
  remove(entry) {
    entry.following?.abort();
    this.#entries.delete(entry.job.id);
    shelf.remove(entry.job.id);
    this.#changed();
  }

  note(entry, kind, text) {
    entry.note = { kind, text };
    this.#changed();
  }

  /** Ask how all of them are: one request for the newest, which tells what is gone, too. */
  async refresh() {
    const before = this.all; // one that is posted meanwhile may be missing in the answer
    const { jobs, next_cursor: more } = await api.json(`/jobs?limit=${LISTED}`);
    const told = new Map(jobs.map((job) => [job.id, job]));
    for (const entry of before) {
      const job = told.get(entry.job.id);
      if (job) this.#update(entry, job);
      else if (!more) entry.gone = true;
    }
    for (const entry of this.live) this.#follow(entry);
    this.#changed();
  }

  /** Have the frames of a job that is over come again. */
  refilm(entry) {
    if (!entry.filmed && !entry.gone) this.#follow(entry);
  }

  #take() {
    for (const job of shelf.jobs()) if (!this.get(job.id)) this.#add(job);
    this.#changed();
  }

  #add(job) {
    const entry = new Entry(job);
    this.#entries.set(job.id, entry);
    return entry;
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  #milestone(entry, what) {
    this.dispatchEvent(new CustomEvent("milestone", { detail: { entry, what } }));
  }

  /** What the server says of a job now; its end is final, and told once. */
  #update(entry, job) {
    if (entry.over && !entry.gone) return;
    const { status, progress, attempt } = entry.job;
    const older = job.attempt === attempt && (progress.step > job.progress.step || (status === "running" && job.status === "queued"));
    entry.job = older && !TERMINAL.includes(job.status) ? { ...job, status, progress } : job;
    entry.gone = false;
    if (!entry.over) return;
    shelf.keep(job);
    this.#milestone(entry, job.status);
  }

  #follow(entry) {
    if (entry.following) return;
    const following = new AbortController();
    entry.following = following;
    follow(entry.job.id, {
      after: entry.seq,
      needsKey: () => this.#server.keys,
      signal: following.signal,
      onEvent: (event) => this.#hear(entry, event),
      onOpen: () => entry.pace.restart(),
      onBreak: () => this.#server.soon(),
      onLost: () => this.#lost(entry),
      exists: async () => {
        this.#update(entry, await api.json(`/jobs/${entry.job.id}`));
        return true;
      },
    }).finally(() => {
      entry.following = null;
      if (!entry.over || !entry.gapped) return;
      [entry.gapped, entry.seq] = [false, 0]; // the film whole, now that there is time
      this.#follow(entry);
    });
  }

  #lost(entry) {
    entry.gone = true;
    this.#changed();
  }

  #hear(entry, event) {
    if (event.seq > entry.seq + 1) entry.gapped = true;
    entry.seq = event.seq;
    if (event.type === "frame") entry.film.add(event);
    if (TERMINAL.includes(event.type)) {
      entry.filmed = true;
      if (event.result) this.#update(entry, event.result);
    } else if (!entry.over) {
      this.#advance(entry, event);
    }
    this.#changed();
  }

  #advance(entry, event) {
    const { job } = entry;
    job.attempt = event.attempt;
    if (event.type === "queued") Object.assign(job, { status: "queued", queue_position: event.queue_position, eta_seconds: event.eta_seconds });
    if (event.type === "started") {
      Object.assign(job, { status: "running", queue_position: null, eta_seconds: null });
      this.#milestone(entry, "started");
    }
    if (event.type === "progress") {
      const half = job.progress.fraction < 0.5 && event.step / event.steps >= 0.5;
      job.progress = { step: event.step, steps: event.steps, fraction: event.step / event.steps };
      entry.pace.note(event, performance.now());
      if (half) this.#milestone(entry, "half");
    }
  }
}
