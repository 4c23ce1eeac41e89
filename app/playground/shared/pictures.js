/** Finished pictures, fetched with the API key and cached. */

import { request } from "./api.js";

const CACHE_SIZE = 400;
/** @type {Map<string, Promise<Blob>>} */
const cache = new Map();

/** @param {{url: string, sha256: string}} image of a job object @returns {Promise<Blob>} */
export function picture(image) {
  const cached = cache.get(image.sha256);
  if (cached) return cached;
  const download = request(image.url).then((response) => response.blob());
  cache.set(image.sha256, download);
  download.catch(() => cache.delete(image.sha256));
  if (cache.size > CACHE_SIZE) cache.delete(cache.keys().next().value);
  return download;
}

/** All pictures of a job; null for each that cannot be fetched. */
export function pictures(job) {
  return Promise.all(job.images.map((image) => picture(image).catch(() => null)));
}

/** Have the browser save a file. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
