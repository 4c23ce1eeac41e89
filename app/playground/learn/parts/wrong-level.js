/** A noisy picture of the visitor, about which the network is asked twice: with its level and with another one. */

import { el } from "../../shared/dom.js";
import { randomSeed } from "../math/random.js";
import { levelOf } from "../math/schedule.js";
import { actionButton } from "./action.js";
import { pictureChooser } from "./choose-picture.js";
import { row, slider, status } from "./controls.js";
import { combined, frame, mean, strip } from "./pictures.js";

/** @param {import("./network.js").Network} network @param {{signal: AbortSignal, done: () => void}} options */
export function wrongLevel(network, { signal, done }) {
  const { card } = network;
  const last = card.timesteps - 1;
  const { element, say } = status("Ask the network first.");
  const [clean, noisy, right, wrong] = ["The picture", "The noisy picture", "Asked with its level", "Asked with the other level"].map((name) => frame(name, { caption: name.toLowerCase() }));
  const text = (t) => `t = ${t}, σ = ${levelOf(card, t).sigma.toFixed(2)}`;
  const real = slider({ label: "Noise in the picture", min: 0, max: last, value: Math.round(0.35 * last), text });
  const given = slider({ label: "Level given to the network", min: 0, max: last, value: Math.round(0.06 * last), text });
  let picture = /** @type {import("./pictures.js").Picture | null} */ (null);

  const ask = actionButton("Ask twice", async () => {
    if (!picture) return;
    say("The same noisy picture goes to the network twice …");
    const source = picture;
    const [t, other] = [real.value, given.value];
    const { job, xt } = await network.noise(source, t, randomSeed());
    const answers = await Promise.all([t, other].map((each) => network.score({ image: `job:${job}/images/0`, t: each })));
    noisy.show(xt);
    const errors = answers.map(({ x0 }, k) => {
      [right, wrong][k].show(x0);
      return Math.sqrt(mean((a, b) => (Math.max(-1, Math.min(1, a)) - b) ** 2, x0, source));
    });
    right.caption(`its level, t = ${t}: off by ${errors[0].toFixed(2)}`);
    wrong.caption(`given t = ${other}: off by ${errors[1].toFixed(2)}`);
    say(other < t ? "Given a level with less noise than there is, the network leaves noise in the picture." : other > t ? "Given a level with more noise than there is, it takes detail for noise, and smooths it away." : "This is the right level: both answers are the same.", other === t ? "good" : "");
    done();
  }, { say, signal });

  return el("div", { class: "stage-part" }, el("h3", {}, "The same with a picture"),
    pictureChooser(card, (chosen) => { picture = combined((each) => Math.round(127.5 * (each + 1)) / 127.5 - 1, chosen); clean.show(chosen); }),
    row(real.element, given.element, ask), strip([clean, noisy, right, wrong]), element,
    el("p", { class: "hint" }, "Both times the network sees the noisy picture as a file of 8 bits, cut off at black and white."));
}
