/** Card 4: the forward process on a picture of the visitor's choice. */

import { normalNumbers, randomSeed } from "../math/random.js";
import { levelOf, signalToNoise } from "../math/schedule.js";
import { pictureChooser } from "../parts/choose-picture.js";
import { button, row, slider } from "../parts/controls.js";
import { combined, frame, picture, strip } from "../parts/pictures.js";
import { levelsChart } from "../parts/chart.js";

export function mount(stage, { network, done }) {
  const { card } = network;
  const last = card.timesteps - 1;
  const clean = frame("The picture", { caption: "the picture x₀" });
  const noisy = frame("The noisy picture", { caption: "" });
  const noise = frame("The noise ε", { caption: "the noise ε" });
  const chart = levelsChart((t) => levelOf(card, t), last);
  let x0 = picture(card.width, card.height, card.channels, new Float32Array(card.width * card.height * card.channels).fill(-1));
  let epsilon = x0;

  const level = slider({ label: "From picture to noise", min: 0, max: last, value: Math.round(0.3 * last), oninput: () => { show(); done(); }, text: describe });

  function describe(t) {
    const { alpha, sigma } = levelOf(card, t);
    return `t = ${t}, α = ${alpha.toFixed(2)}, σ = ${sigma.toFixed(2)}, SNR = ${ratioText(signalToNoise({ t, alpha, sigma }))}`;
  }

  function show() {
    const { alpha, sigma } = levelOf(card, level.value);
    noisy.show(combined((x, e) => alpha * x + sigma * e, x0, epsilon));
    noisy.caption(`xₜ = ${alpha.toFixed(2)}·x₀ + ${sigma.toFixed(2)}·ε`);
    chart.mark(level.value);
  }

  function roll() {
    const normal = normalNumbers(randomSeed());
    epsilon = combined(() => normal(), x0);
    noise.show(combined((e) => e / 2, epsilon));
    show();
  }

  stage.append(
    pictureChooser(card, (chosen) => { x0 = chosen; clean.show(x0); show(); }),
    strip([clean, noisy, noise]), level.element, chart.element, row(button("Other noise", roll)));
  roll();
}

const ratioText = (ratio) => (ratio >= 100 ? Math.round(ratio).toLocaleString("en") : ratio >= 1 ? ratio.toFixed(1) : ratio >= 0.01 ? ratio.toFixed(2) : "almost 0");

