/** The pictures that this tab has sent with its jobs, by their digest: the server gives them back by name alone. */

const MAX_FILES = 40;
/** @type {Map<string, {base64: string, file: Blob}>} */
const sent = new Map();

/** @param {string | null | undefined} digest as in the job object, `sha256:…` @param {{base64: string, file: Blob}} input */
export function rememberInput(digest, input) {
  if (!digest?.startsWith("sha256:")) return;
  sent.delete(digest);
  sent.set(digest, input);
  if (sent.size > MAX_FILES) sent.delete(sent.keys().next().value);
}

/** The picture of this digest; null if another tab or an earlier visit has sent it. */
export const knownInput = (digest) => sent.get(digest ?? "") ?? null;

/** @param {Blob} file @returns {Promise<string>} its bytes in base64 */
export function toBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).replace(/^[^,]*,/, ""));
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(file);
  });
}

/** @param {string} base64 of a PNG @returns {Blob} */
export const pngFile = (base64) => new Blob([Uint8Array.from(atob(base64), (each) => each.charCodeAt(0))], { type: "image/png" });

/** The part of a picture that a model of this size takes: enlarged or reduced until it covers the size, and cropped to its center. */
export function drawFitted(context, source, width, height) {
  const scale = Math.max(width / source.width, height / source.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, (width - scale * source.width) / 2, (height - scale * source.height) / 2, scale * source.width, scale * source.height);
}
