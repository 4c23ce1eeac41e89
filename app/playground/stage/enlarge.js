/** A click on a tile of the viewer opens that picture in a dialog. */

import { columnsOf } from "../shared/canvas.js";

/** @param {import("./viewer.js").Viewer} viewer @param {import("./actions.js").JobActions} actions */
export function enlargeOnClick(viewer, actions) {
  for (const tiles of [viewer.xt, viewer.x0]) {
    tiles.canvas.addEventListener("click", (event) => {
      const { entry } = viewer;
      if (entry?.status !== "succeeded" || entry.missing) return;
      const index = tileAt(tiles.canvas, event, entry.job.n);
      if (index < entry.job.n) actions.enlarge(entry, index);
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
