/** Finished pictures, fetched with the key and remembered for a while. */

import { request } from "./api.js";

const REMEMBERED = 400;
/** @type {Map<string, Promise<Blob>>} */
const known = new Map();

/** @param {{url: string, sha256: string}} image of a job object @returns {Promise<Blob>} */
export function picture(image) {
  const there = known.get(image.sha256);
  if (there) return there;
  const coming = request(image.url).then((answer) => answer.blob());
  known.set(image.sha256, coming);
  coming.catch(() => known.delete(image.sha256));
  if (known.size > REMEMBERED) known.delete(known.keys().next().value);
  return coming;
}

/** All pictures of a job; null for those that cannot be had. */
export function pictures(job) {
  return Promise.all(job.images.map((image) => picture(image).catch(() => null)));
}

/** Hand a file to the visitor. */
export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
