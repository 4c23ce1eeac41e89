/** The picture that a job starts from, and its mask. The editor is loaded when the first picture is chosen. */

import { byId, setText } from "../shared/dom.js";
import { knownInput, pngFile, readPicture, rememberInput } from "../shared/inputs.js";

const LARGEST = { bytes: 5_500_000, side: 2048 }; // of a file: in base64 it fits into a request of 8 MiB, with a mask
export const DEFAULT_STRENGTH = 0.8;

export class StartPicture {
  /** @type {import("./picture-editor.js").PictureEditor | null} */
  #editor = null;
  /** @type {{base64: string, file: Blob | null} | null} */
  #picture = null;
  /** @type {ImageBitmap | null} */
  #bitmap = null;
  #card = /** @type {any} */ (null);
  #sizeOf;

  /** @param {() => [number, number]} sizeOf the width and height that the form asks for */
  constructor(sizeOf) {
    this.#sizeOf = sizeOf;
    const input = byId("image-file");
    byId("image-choose").addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      const [file] = input.files;
      input.value = "";
      if (file) this.choose(file).catch((error) => setText(byId("image-error"), `${file.name}: ${error.message}`));
    });
  }

  /** Whether the selected model starts from pictures. */
  get isTaken() {
    return this.#takes("image");
  }

  /** Offer what a model takes. A picture that was chosen stays. @param {any} card */
  show(card) {
    this.#card = card;
    byId("image-field").hidden = !this.isTaken;
    this.resize();
  }

  /** Follow the form's width and height. */
  resize() {
    if (this.#card) this.#editor?.show({ size: this.#sizeOf(), masks: this.#takes("mask"), strength: this.#takes("strength") });
  }

  /**
   * Start from a file. A file that is too large for a request is reduced.
   * @param {Blob & {name?: string}} file @throws {Error} if the browser cannot read it as a picture
   */
  async choose(file, name = file.name ?? "the picture") {
    setText(byId("image-error"), "");
    const { bitmap, isReduced, ...picture } = await readPicture(file, LARGEST);
    [this.#picture, this.#loaded] = [picture, null];
    this.#bitmap = bitmap;
    const editor = await this.#open();
    editor.open(bitmap, isReduced ? `${name}, reduced to ${LARGEST.side} pixels` : name);
    this.resize();
  }

  remove() {
    [this.#picture, this.#loaded] = [null, null];
    this.#editor?.close();
    setText(byId("image-choose"), "Choose a file …");
  }

  /** Show the picture and the mask of a job. Those that this tab did not send are named by their digest. @param {any} job */
  load({ image, mask = null, strength = DEFAULT_STRENGTH }) {
    if (!image) return this.remove();
    const known = knownInput(image);
    this.#picture = known ?? { base64: image, file: null };
    this.#loaded = { mask: mask && (knownInput(mask)?.base64 ?? mask), strength };
    this.#show(known?.file ?? null, knownInput(mask)?.file ?? null, strength).catch((error) => setText(byId("image-error"), error.message));
  }

  /** What the job had, until its editor has been loaded. */
  #loaded = /** @type {{mask: string | null, strength: number} | null} */ (null);

  async #show(file, mask, strength) {
    const loaded = this.#loaded;
    const editor = await this.#open();
    const bitmaps = await Promise.all([file, mask].map((each) => (each ? createImageBitmap(each) : null)));
    if (this.#loaded !== loaded || !loaded) return;
    this.#bitmap = bitmaps[0];
    editor.open(bitmaps[0], file ? "the same picture" : "The server has this picture; this tab does not.");
    this.resize();
    editor.load({ mask: bitmaps[1], maskText: loaded.mask, strength });
    this.#loaded = null;
  }

  /** The request's fields. */
  request() {
    if (!this.isTaken || !this.#picture) return {};
    const { strength, mask } = this.#loaded ?? { strength: this.#editor?.strength ?? DEFAULT_STRENGTH, mask: this.#editor?.mask() ?? null };
    return {
      image: this.#picture.base64,
      ...(this.#takes("strength") ? { strength } : {}),
      ...(this.#takes("mask") && mask ? { mask } : {}),
    };
  }

  /** Remember what was sent with a job. @param {any} body @param {any} job */
  sent(body, job) {
    if (!body.image) return;
    if (this.#picture?.file && body.image === this.#picture.base64) rememberInput(job.image, { base64: body.image, file: this.#picture.file });
    if (body.mask && !body.mask.startsWith("sha256:")) rememberInput(job.mask, { base64: body.mask, file: pngFile(body.mask) });
  }

  /** Continue the picture beyond its edges. @param {{left: number, right: number, top: number, bottom: number}} added */
  async #extend(added) {
    const { draw, layout } = await import("./extend.js");
    const bitmap = this.#bitmap;
    if (!bitmap || !Object.values(added).some(Boolean)) return;
    const size = this.#sizeOf();
    const canvas = layout(size, added, this.#card);
    const file = await draw(bitmap, size, canvas);
    ["width", "height"].forEach((name, k) => { if (canvas.size[k] !== size[k]) byId(name).value = String(canvas.size[k]); });
    await this.choose(file, "the extended picture");
    this.#editor.markAround(canvas.place);
  }

  #takes(name) {
    return (this.#card?.inputs ?? []).includes(name);
  }

  async #open() {
    const { PictureEditor } = await import("./picture-editor.js");
    const extend = (added) => this.#extend(added).catch((error) => setText(byId("image-error"), error.message));
    this.#editor ??= new PictureEditor(byId("image-editor"), { remove: () => this.remove(), extend });
    setText(byId("image-choose"), "Another file …");
    return this.#editor;
  }
}
