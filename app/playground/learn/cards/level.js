/** Card 7: the same noisy points, asked with the right level and with a wrong one. */

import { el } from "../../shared/dom.js";
import { Mixture } from "../math/mixture.js";
import { normalNumbers } from "../math/random.js";
import { COSINE } from "../math/schedule.js";
import { PRESETS } from "../math/shapes.js";
import { slider, status } from "../parts/controls.js";
import { Plane } from "../parts/plane.js";
import { wrongLevel } from "../parts/wrong-level.js";

const SPREAD = 0.05;
const SHOWN = 60; // noisy points

export function mount(stage, { network, signal, done }) {
  const { element, say } = status();
  const points = PRESETS["Two moons"]();
  const mixture = new Mixture(points, SPREAD);
  const planes = ["Asked with the right level", "Asked with the level that you tell"].map((name) => {
    const plane = new Plane({ name });
    Object.assign(plane, { mixture, points, shows: { density: true, arrows: false, points: false } });
    return plane;
  });
  const captions = [el("figcaption"), el("figcaption")];
  const text = (t) => `t = ${t}, σ = ${COSINE[t].sigma.toFixed(2)}`;
  const real = slider({ label: "Real level", min: 50, max: 900, value: 350, text, oninput: show });
  const given = slider({ label: "Level given to the network", min: 10, max: 980, value: 60, text, oninput: () => { show(); done(); } });

  function show() {
    const level = COSINE[real.value];
    const normal = normalNumbers(11);
    const clean = Array.from({ length: SHOWN }, (_, k) => points[Math.floor((k * points.length) / SHOWN)]);
    const noisy = clean.map((point) => point.map((each) => level.alpha * each + level.sigma * normal()));
    const errors = [real.value, given.value].map((t, i) => {
      // A denoiser answers with x̂_0; moves lead there from the noisy point.
      const answers = noisy.map(([x, y]) => mixture.at(x, y, COSINE[t]).denoised);
      planes[i].level = COSINE[t];
      planes[i].moves = answers.map((to, k) => ({ from: noisy[k], to }));
      planes[i].balls = answers.map((at) => ({ at }));
      planes[i].draw();
      return Math.sqrt(answers.reduce((sum, [x, y], k) => sum + (x - clean[k][0]) ** 2 + (y - clean[k][1]) ** 2, 0) / SHOWN);
    });
    captions[0].textContent = `asked with the right level: off by ${errors[0].toFixed(2)}`;
    captions[1].textContent = `asked with σ = ${COSINE[given.value].sigma.toFixed(2)}: off by ${errors[1].toFixed(2)}`;
    const ratio = COSINE[given.value].sigma / level.sigma;
    say(ratio < 0.85 ? "Given too little noise, it trusts the noisy points and answers with the nearest example, often a wrong one." : ratio > 1.12 ? "Given too much noise, it trusts nothing: the answers crowd in the middle." : "This is the right level, or close to it.", ratio >= 0.85 && ratio <= 1.12 ? "good" : "");
  }

  stage.append(el("div", { class: "two" }, real.element, given.element), el("div", { class: "two" }, ...planes.map((plane, i) => el("figure", { class: "frame" }, plane.element, captions[i]))), element,
    el("p", { class: "hint" }, "The background is the density that the denoiser believes in; lines lead from each noisy point to its answer. The denoiser is exact: it is computed from the points, not learned."));
  if (network?.readsPictures) stage.append(wrongLevel(network, { signal, done }));
  show();
}
