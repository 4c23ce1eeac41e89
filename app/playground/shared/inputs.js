/** The pictures that this tab has sent with its jobs, by their digest: the server gives them back by name alone. */

export const TYPES = ["image/png", "image/jpeg", "image/webp"];
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

/**
 * Read a picture for a request. A file of more bytes is reduced to a number of pixels along its longer side.
 * @param {Blob} file @param {{bytes: number, side: number}} largest
 * @returns {Promise<{base64: string, file: Blob, bitmap: ImageBitmap, isReduced: boolean}>}
 * @throws {Error} if the browser cannot read it as a picture
 */
export async function readPicture(file, { bytes, side }) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap || !TYPES.includes(file.type)) throw new Error("Only PNG, JPEG and WebP pictures can be used.");
  const isReduced = file.size > bytes;
  const sent = isReduced ? await reduced(bitmap, side) : file;
  return { base64: await toBase64(sent), file: sent, bitmap, isReduced };
}

/** A picture as a smaller JPEG file. @param {ImageBitmap} bitmap @param {number} side @returns {Promise<Blob>} */
function reduced(bitmap, side) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = Object.assign(document.createElement("canvas"), { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  drawFitted(canvas.getContext("2d"), bitmap, canvas.width, canvas.height);
  return new Promise((resolve, reject) => canvas.toBlob((file) => (file ? resolve(file) : reject(new Error("The picture cannot be reduced."))), "image/jpeg", 0.95));
}
