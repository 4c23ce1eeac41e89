/** Requests to this server. What it refuses becomes an `ApiError` whose message is a sentence. */

const KEY = "denoised.key";
const PATIENCE = 15_000; // ms, of an answer that should come at once

/** A refusal, or no answer at all (status 0). */
export class ApiError extends Error {
  /** @param {number} status @param {string} message @param {{field: string, message: string}[]} [fields] */
  constructor(status, message, fields = []) {
    super(message);
    this.status = status;
    this.fields = fields;
  }
}

/** The API key, kept for this tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

const listeners = new Set();

/** Have a function called when a key is missing or not known. */
export const onUnauthorized = (listener) => listeners.add(listener);

/**
 * @param {string} path
 * @param {{method?: string, headers?: Record<string, string>, body?: any, patience?: number}} [options]
 * @returns {Promise<Response>} an answer of 200 … 299
 */
export async function request(path, { method = "GET", headers = {}, body, patience = PATIENCE } = {}) {
  const sent = { ...headers };
  if (key.get()) sent.Authorization = `Bearer ${key.get()}`;
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, body, signal: AbortSignal.timeout(patience), credentials: "omit" });
  } catch (error) {
    throw new ApiError(0, error.name === "TimeoutError" ? "The server did not answer in time. Try again in a moment." : "The server does not answer. Is it running? The page tries again by itself.");
  }
  if (answer.ok) return answer;
  const refusal = await explained(answer);
  if (answer.status === 401) listeners.forEach((listener) => listener(refusal));
  throw refusal;
}

/** @returns {Promise<any>} the JSON of an answer */
export const json = async (path, options) => (await request(path, options)).json();

/** Post a job. The same idempotency key and body are one job, so that a lost answer may be asked for again. */
export async function generate(body, idempotencyKey) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": idempotencyKey };
  const post = () => json("/generate", { method: "POST", headers, body: JSON.stringify(body) });
  try {
    return await post();
  } catch (error) {
    if (error.status !== 0) throw error;
    await pause(1000);
    return post();
  }
}

export const cancel = (id) => json(`/jobs/${id}`, { method: "DELETE" });

/** Make a PNG again and compare; asked again while it is not ready, under one idempotency key. */
export async function verify(picture) {
  const headers = { "Content-Type": "image/png", Prefer: "wait=20", "Idempotency-Key": randomName() };
  for (;;) {
    try {
      return await json("/verify", { method: "POST", headers, body: picture, patience: 40_000 });
    } catch (error) {
      if (error.status !== 504) throw error;
    }
  }
}

/** The address of a job's events; with keys it holds a ticket, which works once. */
export async function eventsAddress(id, after, needsKey) {
  const address = new URL(`/jobs/${id}/events`, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.searchParams.set("after", String(after));
  if (needsKey) address.searchParams.set("ticket", (await json("/tickets", { method: "POST" })).ticket);
  return address.href;
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** 128 random bits; `crypto.randomUUID` is missing where the page came over plain HTTP from another machine. */
export function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function explained(answer) {
  let problem = {};
  try {
    problem = await answer.json();
  } catch {
    // a proxy's page, perhaps: the status has to do
  }
  const detail = typeof problem.detail === "string" ? problem.detail : `the server answered ${answer.status}`;
  const wait = answer.headers.get("Retry-After");
  const again = answer.status === 429 && wait ? ` Try again in ${wait} s.` : "";
  return new ApiError(answer.status, sentence(detail) + again, Array.isArray(problem.errors) ? problem.errors : []);
}

/** A refusal's words with a capital and a full stop. */
export function sentence(words) {
  const text = words.trim();
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");
}
