/** Several jobs that differ in one field, side by side, with one scrubber for all and a map of what differs. */

import { el } from "../../shared/dom.js";
import { slider } from "./controls.js";
import { combined, decode, frame, mean, strip } from "./pictures.js";

/**
 * @param {import("./network.js").Network} network
 * @param {{caption: string, body: Record<string, any>}[]} columns the last one is what the others are compared with
 */
export function comparison(network, columns) {
  const pictures = columns.map(({ caption }) => frame(caption, { caption }));
  const maps = columns.map(({ caption }) => frame(`${caption}: the difference`, { caption: "" }));
  const scrubber = slider({ label: "How far", min: 0, max: 100, value: 100, text: (share) => (share === 100 ? "finished" : `${share} % of the steps`), oninput: (share) => show(share) });
  scrubber.input.disabled = true;
  /** @type {{run: any, finished: any, frames: any[]}[]} */
  let films = [];

  function at({ finished, frames }, share) {
    const k = Math.floor((share / 100) * frames.length);
    return share === 100 || !frames.length ? finished : frames[Math.min(k, frames.length - 1)];
  }

  function show(share) {
    const shown = films.map((film) => at(film, share));
    const reference = shown[shown.length - 1];
    shown.forEach((each, k) => {
      pictures[k].show(each);
      maps[k].showSigned(combined((a, b) => a - b, each, reference), 1);
      const difference = Math.sqrt(mean((a, b) => (a - b) ** 2, each, reference));
      maps[k].caption(k === shown.length - 1 ? "compared with this" : `differs by ${(100 * difference / 2).toFixed(0)} %`);
    });
  }

  return {
    element: el("div", { class: "stage-part" }, strip(pictures), scrubber.element, strip(maps)),
    /** Run all jobs at once. @param {AbortSignal} signal @param {Record<string, any>} [shared] fields of all of them */
    async run(signal, shared = {}) {
      const { channels } = network.card;
      films = await Promise.all(columns.map(async ({ body }) => {
        const run = await network.run({ n: 1, preview: "x0", preview_every: Math.max(1, Math.ceil((body.steps ?? 20) / 25)), ...shared, ...body }, { signal });
        const files = run.steps.map(({ step }) => run.file("x0", step)).filter(Boolean);
        const frames = await Promise.all(files.map((file) => decode(/** @type {Blob} */ (file), channels)));
        return { run, frames, finished: (await network.finished(run))[0] };
      }));
      scrubber.input.disabled = false;
      scrubber.set(100);
      show(100);
      return films.map(({ run }) => run.job);
    },
  };
}
