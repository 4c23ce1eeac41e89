/** A film under a scrubber: x_t, x̂_0 and the predicted noise at each step, with a label in words. */

import { el } from "../../shared/dom.js";
import { slider } from "./controls.js";
import { combined, decode, frame, paint, strip } from "./pictures.js";

const FRAME_RANGE = 3; // ε̂ of a white pixel in the server's frames

/** @param {import("./network.js").Network} network */
export function filmViewer(network) {
  const seen = frame("What the network sees", { caption: "xₜ" });
  const guess = frame("The picture that it predicts", { caption: "x̂₀" });
  const noise = frame("The noise that it predicts", { caption: "ε̂" });
  let steps = [];
  let finished = null;
  const scrubber = slider({ label: "Step", min: 0, max: 0, value: 0, oninput: show, text: describe });
  scrubber.input.disabled = true;

  function describe(k) {
    if (!steps.length) return "no film yet";
    if (k >= steps.length) return "finished, σ = 0";
    return `xₜ, σ = ${steps[k].sigma.toFixed(2)}, t = ${Math.round(steps[k].t)}`;
  }

  function show() {
    const k = scrubber.value;
    if (k >= steps.length) {
      if (finished) for (const each of [seen, guess]) each.show(finished);
      if (finished) noise.show(combined(() => 0, finished));
      seen.caption("x₀, finished");
      guess.caption("x₀, finished");
      noise.caption("no noise is left");
      return;
    }
    const { xt, x0, noise: predicted, sigma } = steps[k];
    const alpha = Math.sqrt(1 - sigma ** 2);
    seen.show(xt);
    guess.show(x0);
    noise.show(predicted ? combined((e) => FRAME_RANGE * e / 2, predicted) : combined((x, d) => (x - alpha * d) / sigma / 2, xt, x0));
    seen.caption("it sees xₜ");
    guess.caption("it predicts x̂₀");
    noise.caption("the rest is noise, ε̂");
  }

  return {
    element: el("div", { class: "stage-part" }, strip([seen, guess, noise]), scrubber.element),
    /** The frames to ask for: with ε̂ where the server shows it, because frames cut x_t off at −1 and 1. */
    preview: network.card.previews.includes("all") ? "all" : "both",
    /** Show the films of a run, from its frames. @param {import("./network.js").Run} run */
    async load(run) {
      const { channels } = network.card;
      steps = (await Promise.all(run.steps.map(async ({ step, t, sigma }) => {
        const [xt, x0, predicted] = await Promise.all(["xt", "x0", "eps"].map((kind) => run.file(kind, step)).map((file) => file && decode(file, channels)));
        return xt && x0 ? { t, sigma, xt, x0, noise: predicted } : null;
      }))).filter(Boolean);
      [finished] = await network.finished(run);
      scrubber.range(steps.length);
      scrubber.set(Math.round(0.6 * steps.length));
      show();
    },
    paintLive: async (event, run) => {
      const canvas = event.type === "frame" && { xt: seen, x0: guess }[event.kind]?.canvas;
      const file = canvas && run.file(event.kind, event.step);
      if (file) paint(canvas, await decode(file, network.card.channels));
    },
  };
}
