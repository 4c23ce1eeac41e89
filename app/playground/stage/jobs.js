/** This browser's jobs: their requests, their progress and the frames received so far. */

import * as api from "../shared/api.js";
import { follow } from "../shared/events.js";
import { Frames } from "../shared/frames.js";
import { Rate } from "../shared/rate.js";
import * as storage from "../shared/storage.js";

const PAGE_SIZE = 100;
const BACK = "The server did not respond, and is back now. Press the button again.";
const TERMINAL = ["succeeded", "failed", "canceled"];

/** A job and what this page knows about it. */
export class Entry {
  frames = new Frames();
  rate = new Rate();
  /** @type {{kind: "plain" | "good" | "bad", text: string} | null} */
  note = null;
  seq = 0;
  missing = false; // the server no longer has it
  canceling = false;
  complete = false; // all of its events have arrived
  hasGap = false; // the server skipped frames because this browser was slow
  /** @type {AbortController | null} */
  following = null;

  constructor(job) {
    this.job = job;
  }

  get ended() {
    return TERMINAL.includes(this.job.status) || this.missing;
  }

  get status() {
    return this.missing && !TERMINAL.includes(this.job.status) ? "missing" : this.job.status;
  }
}

/** Sends `change` when any entry changes, and `milestone` (with `detail`) when a job starts, is half done or ends. */
export class Jobs extends EventTarget {
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  #server;

  /** @param {import("../shared/server.js").Server} server */
  constructor(server) {
    super();
    this.#server = server;
    this.#restore();
    storage.onOtherTabChange(() => this.#restore());
  }

  /** Newest first. */
  get all() {
    return [...this.#entries.values()].sort((a, b) => b.job.created_at - a.job.created_at);
  }

  get live() {
    return this.all.filter((entry) => !entry.ended);
  }

  get(id) {
    return this.#entries.get(id) ?? null;
  }

  /** Post a job. */
  async start(body, idempotencyKey) {
    const job = await api.generate(body, idempotencyKey);
    const entry = this.get(job.id) ?? this.#add(job);
    storage.saveJob(job);
    this.#follow(entry);
    this.#changed();
    return entry;
  }

  /** Add a job that this page did not post. @param {any} job */
  adopt(job) {
    const entry = this.get(job.id) ?? this.#add(job);
    storage.saveJob(job);
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
      else this.setError(entry, error);
    } finally {
      entry.canceling = false;
      this.#changed();
    }
  }

  /** Remove a job from this browser's list. The server keeps it until it expires. */
  remove(entry) {
    entry.following?.abort();
    this.#entries.delete(entry.job.id);
    storage.removeJob(entry.job.id);
    this.#changed();
  }

  setNote(entry, kind, text) {
    entry.note = { kind, text };
    this.#changed();
  }

  /** Say why an action failed. After an outage, say when the server is back. @param {any} entry @param {any} error */
  setError(entry, error) {
    this.setNote(entry, "bad", error.message);
    if (!error.isOutage) return;
    const { note } = entry;
    this.#server.served().then(() => entry.note === note && this.setNote(entry, "plain", BACK));
  }

  /** Update all entries with one request for the newest jobs. Entries that it does not list are missing. */
  async refresh() {
    const before = this.all; // a job posted during the request may not be in the response
    const { jobs, next_cursor: more } = await api.json(`/jobs?limit=${PAGE_SIZE}`);
    const listed = new Map(jobs.map((job) => [job.id, job]));
    for (const entry of before) {
      const job = listed.get(entry.job.id);
      if (job) this.#update(entry, job);
      else if (!more) entry.missing = true;
    }
    for (const entry of this.live) this.#follow(entry);
    this.#changed();
  }

  /** Fetch the frames of a job that has ended. */
  reloadFrames(entry) {
    if (!entry.complete && !entry.missing) this.#follow(entry);
  }

  /** Add the jobs that this browser has stored. */
  #restore() {
    for (const job of storage.loadJobs()) if (!this.get(job.id)) this.#add(job);
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

  /** Apply the server's current job object. A terminal status is final and announced once. */
  #update(entry, job) {
    if (entry.ended && !entry.missing) return;
    const { status, progress, attempt } = entry.job;
    const stale = job.attempt === attempt && (progress.step > job.progress.step || (status === "running" && job.status === "queued"));
    entry.job = stale && !TERMINAL.includes(job.status) ? { ...job, status, progress } : job;
    entry.missing = false;
    if (!entry.ended) return;
    storage.saveJob(job);
    this.#milestone(entry, job.status);
  }

  #follow(entry) {
    if (entry.following) return;
    const following = new AbortController();
    entry.following = following;
    follow(entry.job.id, {
      after: entry.seq,
      needsKey: () => this.#server.needsKey,
      signal: following.signal,
      onEvent: (event) => this.#receive(entry, event),
      onOpen: () => entry.rate.restart(),
      onDisconnect: () => this.#server.checkNow(),
      onMissing: () => this.#markMissing(entry),
      exists: async () => {
        this.#update(entry, await api.json(`/jobs/${entry.job.id}`));
        return true;
      },
    }).finally(() => {
      entry.following = null;
      if (!entry.ended || !entry.hasGap) return;
      [entry.hasGap, entry.seq] = [false, 0]; // fetch all frames, now that the job has ended
      this.#follow(entry);
    });
  }

  #markMissing(entry) {
    entry.missing = true;
    this.#changed();
  }

  #receive(entry, event) {
    if (event.seq > entry.seq + 1) entry.hasGap = true;
    entry.seq = event.seq;
    if (event.type === "frame") entry.frames.add(event);
    if (TERMINAL.includes(event.type)) {
      entry.complete = true;
      if (event.result) this.#update(entry, event.result);
    } else if (!entry.ended) {
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
      entry.rate.record(event, performance.now());
      if (half) this.#milestone(entry, "half");
    }
  }
}
