/** Reads numpy's .npy files of float32. */

const MAGIC = "\x93NUMPY";
const LENGTH_AT = 8; // of the header, in a file of version 1

/** @param {ArrayBuffer} buffer @returns {Float32Array} the values, in C order @throws {Error} for another file or type */
export function floatsOf(buffer) {
  const text = (from, to) => String.fromCharCode(...new Uint8Array(buffer, from, to - from));
  if (text(0, MAGIC.length) !== MAGIC) throw new Error("The server's array is no .npy file.");
  const start = LENGTH_AT + 2 + new DataView(buffer).getUint16(LENGTH_AT, true);
  if (!text(LENGTH_AT + 2, start).includes("'<f4'")) throw new Error("The server's array is not of float32.");
  return new Float32Array(buffer.slice(start));
}
