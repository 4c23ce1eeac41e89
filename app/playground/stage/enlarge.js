/** One picture of a finished job in a dialog: large, with its own seed, to download or to vary. */

import { el } from "../shared/dom.js";
import { picture, save } from "../shared/pictures.js";
import { columnsOf, TileCanvas } from "../shared/canvas.js";
import { titleOf } from "../shared/text.js";
import { fileName } from "./snippets.js";

/** Open the picture under a click on the viewer's tiles. @param {import("./viewer.js").Viewer} viewer @param {any} actions */
export function enlargeOnClick(viewer, actions) {
  for (const tiles of [viewer.xt, viewer.x0]) {
    tiles.canvas.addEventListener("click", (event) => {
      const { entry } = viewer;
      if (entry?.status !== "succeeded" || entry.missing) return;
      const index = tileAt(tiles.canvas, event, entry.job.n);
      if (index < entry.job.n) show(entry, index, actions);
    });
  }
}

/** The index of the tile under a click; the canvas is shown as a square, with its content in the middle. */
function tileAt(canvas, event, count) {
  const box = canvas.getBoundingClientRect();
  const scale = Math.min(box.width / canvas.width, box.height / canvas.height);
  const columns = columnsOf(count);
  const x = (event.clientX - box.left - (box.width - scale * canvas.width) / 2) / (scale * canvas.width);
  const y = (event.clientY - box.top - (box.height - scale * canvas.height) / 2) / (scale * canvas.height);
  return Math.floor(y * Math.ceil(count / columns)) * columns + Math.floor(x * columns);
}

/** @param {any} entry @param {number} index of the picture */
export function show(entry, index, actions) {
  const { job } = entry;
  const image = job.images[index];
  const name = `${titleOf(job)}, seed ${image.seed}`;
  const canvas = /** @type {HTMLCanvasElement} */ (el("canvas", { role: "img", "aria-label": name, width: image.width, height: image.height }));
  const dialog = el("dialog", { class: "enlarged", "aria-label": name }, el("div", { class: "box" }, canvas), el("p", {}, name));
  const one = { ...entry, job: { ...job, n: 1, seed: image.seed } };
  const button = (text, action) => el("button", { type: "button", onclick: async () => { await action(); } }, text);
  const close = () => dialog.close();
  dialog.append(el("div", { class: "actions" },
    button("Download", async () => save(await picture(image), fileName(job, index))),
    button("Vary", () => { close(); actions.vary(one); }),
    button("Alone", () => { close(); actions.repeat(one); }), button("Close", close)));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  document.body.append(dialog);
  picture(image).then((blob) => new TileCanvas(canvas).show([blob]), close);
  dialog.showModal();
}
