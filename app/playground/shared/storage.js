/** What this browser stores between visits: its jobs and the form's last values. */

const JOBS = "denoised.jobs";
const CHOICE = "denoised.choice";
const SMOOTH = "denoised.smooth";
const PROGRESS = "denoised.learn";
const STRIP = "denoised.strip";
const MAX_JOBS = 60;

function read(name, fallback, area = "localStorage") {
  try {
    return JSON.parse(window[area].getItem(name) ?? "") ?? fallback;
  } catch {
    return fallback;
  }
}

function write(name, value, area = "localStorage") {
  try {
    window[area].setItem(name, JSON.stringify(value));
  } catch {
    // storage is full or forbidden: this visit works without it
  }
}

/** The stored job objects, newest first. */
export function loadJobs() {
  const stored = read(JOBS, []);
  return Array.isArray(stored) ? stored.filter((job) => typeof job?.id === "string") : [];
}

/** Store a job's current state. Reads the list again first, because other tabs may have added jobs. */
export function saveJob(job) {
  const others = loadJobs().filter((other) => other.id !== job.id);
  write(JOBS, [...others, job].sort((a, b) => b.created_at - a.created_at).slice(0, MAX_JOBS));
}

export const removeJob = (id) => write(JOBS, loadJobs().filter((job) => job.id !== id));

/** Call `listener` when another tab changes the stored jobs. */
export function onOtherTabChange(listener) {
  addEventListener("storage", (event) => event.key === JOBS && listener());
}

export const loadChoice = () => read(CHOICE, {});
export const saveChoice = (values) => write(CHOICE, values);

/** How far the visitor is in the course: the card of the last visit, and the cards whose task is done. */
export function loadProgress() {
  const { last = "", done = [] } = read(PROGRESS, {});
  return { last: String(last), done: Array.isArray(done) ? done : [] };
}

export const saveProgress = (progress) => write(PROGRESS, progress);

/** Whether pictures are shown smooth instead of as pixels. */
export const loadSmooth = () => read(SMOOTH, false) === true;
export const saveSmooth = (smooth) => write(SMOOTH, smooth);

/** The comparison that this tab shows, which a reload keeps; null if none. @typedef {{title: string, panels: {name: string, isOwn: boolean, id: string | null}[]}} StoredStrip */
export const loadStrip = () => /** @type {StoredStrip | null} */ (read(STRIP, null, "sessionStorage"));
/** @param {StoredStrip | null} strip */
export const saveStrip = (strip) => write(STRIP, strip, "sessionStorage");
