/** Requests to this server. Every error becomes an `ApiError` whose message is a sentence. */

const KEY = "denoised.key";
const TIMEOUT = 15_000; // ms, for a response that should come at once

/** An error response, or no response at all (status 0). */
export class ApiError extends Error {
  /** @param {number} status @param {string} message @param {{field: string, message: string}[]} [fields] */
  constructor(status, message, fields = []) {
    super(message);
    this.status = status;
    this.fields = fields;
  }

  /** Whether the server, its store or its workers may come back, so that the same request can succeed later. */
  get isOutage() {
    return this.status === 0 || this.status === 503;
  }
}

/** The API key, kept for this tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

const listeners = new Set();

/** Call `listener` whenever the server answers 401: the key is missing or unknown. */
export const onUnauthorized = (listener) => listeners.add(listener);

/**
 * @param {string} path
 * @param {{method?: string, headers?: Record<string, string>, body?: any, timeout?: number}} [options]
 * @returns {Promise<Response>} a response with a status of 200 … 299
 */
export async function request(path, { method = "GET", headers = {}, body, timeout = TIMEOUT } = {}) {
  const sentHeaders = { ...headers };
  if (key.get()) sentHeaders.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { method, headers: sentHeaders, body, signal: AbortSignal.timeout(timeout), credentials: "omit" });
  } catch (error) {
    throw new ApiError(0, error.name === "TimeoutError" ? "The server did not respond in time. Try again in a moment." : "The server does not respond. Is it running? This page keeps trying.");
  }
  if (response.ok) return response;
  const error = await toApiError(response);
  if (response.status === 401) listeners.forEach((listener) => listener(error));
  throw error;
}

/** @returns {Promise<any>} the JSON body of the response */
export const json = async (path, options) => (await request(path, options)).json();

/** Post a job. The same idempotency key and body make one job, so a post whose response was lost can be repeated. */
export async function generate(body, idempotencyKey) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": idempotencyKey };
  const post = () => json("/generate", { method: "POST", headers, body: JSON.stringify(body) });
  try {
    return await post();
  } catch (error) {
    if (error.status !== 0) throw error;
    await sleep(1000);
    return post();
  }
}

export const cancel = (id) => json(`/jobs/${id}`, { method: "DELETE" });

/** Make a PNG again and compare. Repeats the request, under one idempotency key, until the picture is ready. */
export async function verify(picture) {
  const headers = { "Content-Type": "image/png", Prefer: "wait=20", "Idempotency-Key": randomId() };
  for (;;) {
    try {
      return await json("/verify", { method: "POST", headers, body: picture, timeout: 40_000 });
    } catch (error) {
      if (error.status !== 504) throw error;
    }
  }
}

/** The URL of a job's events. If the server needs a key, the URL carries a ticket, which works once. */
export async function eventsUrl(id, after, needsKey) {
  const url = new URL(`/jobs/${id}/events`, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  url.searchParams.set("after", String(after));
  if (needsKey) url.searchParams.set("ticket", (await json("/tickets", { method: "POST" })).ticket);
  return url.href;
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** 128 random bits. `crypto.randomUUID` does not exist when the page is served over plain HTTP by another machine. */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function toApiError(response) {
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // not JSON, for example a proxy's error page: the status says enough
  }
  const detail = typeof problem.detail === "string" ? problem.detail : `the server answered with status ${response.status}`;
  const wait = response.headers.get("Retry-After");
  const retry = response.status === 429 && wait ? ` Try again in ${wait} s.` : "";
  return new ApiError(response.status, sentence(detail) + retry, Array.isArray(problem.errors) ? problem.errors : []);
}

/** A message with a capital letter and a full stop. */
export function sentence(message) {
  const text = message.trim();
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");
}
