/** Text that the page shows. */

/** Names of samplers as their papers and other programs write them. */
const SAMPLER_NAMES = {
  ddpm: "DDPM", ddim: "DDIM", euler: "Euler", euler_a: "Euler ancestral", heun: "Heun", dpm_2: "DPM 2", dpmpp_2m: "DPM++ 2M",
  dpmpp_2m_sde: "DPM++ 2M SDE", dpmpp_3m: "DPM++ 3M", dpmpp_sde: "DPM++ SDE", lms: "LMS", plms: "PLMS", unipc: "UniPC",
  unipc_3: "UniPC 3", langevin: "Langevin", pc: "Predictor–corrector", lcm: "LCM", tcd: "TCD",
};

export const samplerName = (name) => SAMPLER_NAMES[name] ?? name;

const MAX_TITLE = 80; // characters

/** A job's label or the beginning of its prompt; "anything" without either. @param {{label: string | null, prompt?: string | null}} job */
export function titleOf(job) {
  const title = job.label ?? job.prompt ?? "anything";
  return title.length > MAX_TITLE ? `${title.slice(0, MAX_TITLE)}…` : title;
}

export const plural = (count, one, more = `${one}s`) => `${count} ${count === 1 ? one : more}`;

/** "seed 7", "seeds 7 – 10" */
export const seedsOf = (job) => (job.n === 1 ? `seed ${job.seed}` : `seeds ${job.seed} – ${job.seed + job.n - 1}`);

/** A job's request in one line. */
export function factsOf(job) {
  const guided = job.guidance_scale === 1 ? null : `guidance ${formatNumber(job.guidance_scale)}`;
  const started = job.image ? `from a picture, ${pictureStrength(job)}${job.mask ? ", masked" : ""}` : null;
  const controls = job.controls?.length ? `with ${job.controls.map(({ name, scale }) => (scale === 1 ? name : `${name} ${formatNumber(scale)}`)).join(", ")}` : null;
  return [job.model, seedsOf(job), plural(job.steps, "step"), samplerName(job.sampler), guided, started, controls].filter(Boolean).join(" · ");
}

/** How much the picture that a job started from counts. A model that edits pictures starts from noise alone and has a guidance for them. */
const pictureStrength = (job) => ((job.image_guidance_scale ?? null) === null ? `strength ${formatNumber(job.strength)}` : `picture guidance ${formatNumber(job.image_guidance_scale)}`);

/** A job's seed, and how it was sampled, in three lines: what tells two cards of one subject apart. */
export function cardFacts(job) {
  const guided = job.guidance_scale === 1 ? null : `guidance ${formatNumber(job.guidance_scale)}`;
  const started = job.image ? pictureStrength(job) : null;
  const controls = job.controls?.length ? job.controls.map(({ name }) => name).join(", ") : null;
  return [seedsOf(job), samplerName(job.sampler), [plural(job.steps, "step"), guided, started, controls].filter(Boolean).join(", ")].join("\n");
}

/** A model's size, data and license in one line. */
export function factsOfModel({ width, height, data = "", license = "" }) {
  const named = data.split(/\(|, /)[0].trim();
  const terms = license.split(". ")[0].replace(/,? as the project$/, "");
  return [`${width}×${height} pixels`, named && `data: ${named}`, terms && terms.charAt(0).toLowerCase() + terms.slice(1)].filter(Boolean).join(" · ");
}

/** A number rounded to three significant digits. */
export const formatNumber = (value) => String(Number(value.toPrecision(3)));

/** "about 8 s", "about 3 min", "about 5 h" */
export function durationText(seconds) {
  if (seconds < 10) return `about ${Math.ceil(seconds)} s`;
  if (seconds < 90) return `about ${Math.ceil(seconds / 5) * 5} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${Math.round(seconds / 3600)} h`;
}

/** A place in the queue; 0 is next. */
export function queueText(position) {
  if (position === null || position === undefined) return "queued";
  return position === 0 ? "next in the queue" : `${position + 1}${ordinalSuffix(position + 1)} in the queue`;
}

function ordinalSuffix(number) {
  if (number % 100 >= 11 && number % 100 <= 13) return "th";
  return ["th", "st", "nd", "rd"][number % 10] ?? "th";
}

/**
 * "3 running · 1 queued · loading model"
 * @param {string[]} statuses of this browser's jobs
 * @param {string} server "connecting" | "ready" | "starting" | "no worker" | "unreachable" | "locked"
 */
export function statusText(statuses, server) {
  const count = (status) => statuses.filter((each) => each === status).length;
  const counts = ["running", "queued"].filter(count).map((status) => `${count(status)} ${status}`);
  const problem = { connecting: "connecting", starting: "loading model", "no worker": "no worker", unreachable: "server unreachable", locked: "key needed" }[server];
  return [...counts, ...(problem ? [problem] : [])].join(" · ") || "ready";
}

/** Why no picture can be made now, and what to do about it; null if one can. */
export function outageText(server) {
  if (server === "unreachable") return "The server does not respond. It may be restarting; this page continues as soon as it is back.";
  if (server === "starting") return "No model is served yet. A worker is probably loading one, which takes a few seconds.";
  if (server === "no worker") return "No worker serves a model. “denoised serve” starts a worker by itself; if you run “denoised api”, start one with “denoised worker”. Queued jobs are not lost.";
  return null;
}

/** The result of a verification. @param {{match: boolean, reason: string | null}[]} outcomes */
export function verificationText(outcomes) {
  const equal = outcomes.filter((outcome) => outcome.match).length;
  if (equal === outcomes.length) return outcomes.length === 1 ? "Verified: made again, every byte is the same." : `Verified: made all ${equal} again, every byte is the same.`;
  const reason = outcomes.find((outcome) => !outcome.match)?.reason ?? "";
  return `${equal} of ${outcomes.length} are the same. ${reason.charAt(0).toUpperCase()}${reason.slice(1)}.`;
}
