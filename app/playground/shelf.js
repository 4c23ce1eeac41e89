/** What this browser remembers from one visit to the next: its jobs, and what was last chosen. */

const JOBS = "denoised.jobs";
const CHOICE = "denoised.choice";
const KEPT = 60;

function read(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name) ?? "") ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // full or forbidden: this visit goes on without
  }
}

/** Job objects as they were last seen, newest first. */
export function jobs() {
  const found = read(JOBS, []);
  return Array.isArray(found) ? found.filter((job) => typeof job?.id === "string") : [];
}

/** Keep a job as it now is; other tabs may have put jobs of theirs here meanwhile. */
export function keep(job) {
  const others = jobs().filter((other) => other.id !== job.id);
  write(JOBS, [...others, job].sort((a, b) => b.created_at - a.created_at).slice(0, KEPT));
}

export const remove = (id) => write(JOBS, jobs().filter((job) => job.id !== id));

/** Call a function when another tab has changed the jobs. */
export function onElsewhere(listener) {
  addEventListener("storage", (event) => event.key === JOBS && listener());
}

export const choice = () => read(CHOICE, {});
export const choose = (values) => write(CHOICE, values);
