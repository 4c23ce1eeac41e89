/** What the page says. */

/** "sneaker", or what stands for no label. @param {{label: string | null}} job */
export const titleOf = (job) => job.label ?? "anything";

export const many = (count, one, more = `${one}s`) => `${count} ${count === 1 ? one : more}`;

/** "seed 7", "seeds 7 – 10" */
export const seedsOf = (job) => (job.n === 1 ? `seed ${job.seed}` : `seeds ${job.seed} – ${job.seed + job.n - 1}`);

/** What a job was asked for, in a line. */
export function factsOf(job) {
  const guided = job.guidance_scale === 1 ? null : `guidance ${plain(job.guidance_scale)}`;
  return [job.model, seedsOf(job), many(job.steps, "step"), job.sampler, guided].filter(Boolean).join(" · ");
}

/** A number without a tail of digits. */
export const plain = (value) => String(Number(value.toPrecision(3)));

/** "about 8 s", "about 3 min" */
export function about(seconds) {
  if (seconds < 10) return `about ${Math.ceil(seconds)} s`;
  if (seconds < 90) return `about ${Math.ceil(seconds / 5) * 5} s`;
  return `about ${Math.round(seconds / 60)} min`;
}

/** A place in the queue; 0 is the next. */
export function place(position) {
  if (position === null || position === undefined) return "queued";
  return position === 0 ? "next in the queue" : `${position + 1}${ending(position + 1)} in the queue`;
}

function ending(number) {
  if (number % 100 >= 11 && number % 100 <= 13) return "th";
  return ["th", "st", "nd", "rd"][number % 10] ?? "th";
}

/**
 * "3 running · 1 queued · loading model"
 * @param {string[]} statuses of this browser's jobs
 * @param {string} server "connecting" | "ready" | "starting" | "no worker" | "away" | "locked"
 */
export function phase(statuses, server) {
  const count = (status) => statuses.filter((each) => each === status).length;
  const counts = ["running", "queued"].filter(count).map((status) => `${count(status)} ${status}`);
  const trouble = { connecting: "connecting", starting: "loading model", "no worker": "no worker", away: "server away", locked: "key needed" }[server];
  return [...counts, ...(trouble ? [trouble] : [])].join(" · ") || "ready";
}

/** Why nothing can be made now, and what to do; null when it can. */
export function trouble(server) {
  if (server === "away") return "The server does not answer. It may be restarting; this page goes on by itself as soon as it is back.";
  if (server === "starting") return "No model is served yet. A worker is probably loading one: this takes some seconds.";
  if (server === "no worker") return "No worker serves a model. “denoised serve” starts one by itself; beside “denoised api”, start one with “denoised worker”. Jobs that wait are not lost.";
  return null;
}

/** What became of a verification. @param {{match: boolean, reason: string | null}[]} outcomes */
export function verified(outcomes) {
  const equal = outcomes.filter((outcome) => outcome.match).length;
  if (equal === outcomes.length) return outcomes.length === 1 ? "Verified: made again, every byte is the same." : `Verified: all ${equal} made again, every byte is the same.`;
  const reason = outcomes.find((outcome) => !outcome.match)?.reason ?? "";
  return `${equal} of ${outcomes.length} came out the same. ${reason.charAt(0).toUpperCase()}${reason.slice(1)}.`;
}
