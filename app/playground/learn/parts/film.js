/** A film under a scrubber: x_t, x̂_0 and the predicted noise at each step, with a label in words. */

import { el } from "../../shared/dom.js";
import { slider } from "./controls.js";
import { combined, decode, frame, paint, strip } from "./pictures.js";

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
    const { xt, x0, sigma } = steps[k];
    const alpha = Math.sqrt(1 - sigma ** 2);
    seen.show(xt);
    guess.show(x0);
    noise.show(combined((x, d) => (x - alpha * d) / sigma / 2, xt, x0));
    seen.caption("it sees xₜ");
    guess.caption("it predicts x̂₀");
    noise.caption("the rest is noise, ε̂");
  }

  return {
    element: el("div", { class: "stage-part" }, strip([seen, guess, noise]), scrubber.element),
    /** Show the films of a run, from pictures of `preview=both`. @param {import("./network.js").Run} run */
    async load(run) {
      const { channels } = network.card;
      steps = (await Promise.all(run.steps.map(async ({ step, t, sigma }) => {
        const files = [run.file("xt", step), run.file("x0", step)];
        if (!files.every(Boolean)) return null;
        const [xt, x0] = await Promise.all(files.map((file) => decode(/** @type {Blob} */ (file), channels)));
        return { t, sigma, xt, x0 };
      }))).filter(Boolean);
      [finished] = await network.finished(run);
      scrubber.range(steps.length);
      scrubber.set(Math.round(0.6 * steps.length));
      show();
    },
    paintLive: async (event, run) => {
      if (event.type !== "frame") return;
      const file = run.file(event.kind, event.step);
      if (file) paint((event.kind === "xt" ? seen : guess).canvas, await decode(file, network.card.channels));
    },
  };
}
