/** Card 10: guidance as two answers and their difference, as a strip, and when a picture is decided. */

import { el, svg } from "../../shared/dom.js";
import { Mixture } from "../math/mixture.js";
import { normalNumbers, randomSeed } from "../math/random.js";
import { trailingLevels } from "../math/schedule.js";
import { moons } from "../math/shapes.js";
import { ddimStep } from "../math/walks.js";
import { actionButton } from "../parts/action.js";
import { choice, row, slider, status } from "../parts/controls.js";
import { combined, decode, frame, mean, strip } from "../parts/pictures.js";
import { Plane } from "../parts/plane.js";

const SCALES = [1, 2, 4, 7, 10];
const SWITCH_STEPS = 30;
const BALLS = 60;

export function mount(stage, { network, signal, done }) {
  const place = el("div", { class: "stage-part" });
  const views = { answers: answersView, decided: decidedView };
  const canGuide = network.card.unconditional && network.subjects.length > 0 && network.isOfPixels;
  const view = choice({
    label: "Show", value: canGuide ? "answers" : "decided", onchange: (name) => views[name](place, network, signal, done),
    options: [["answers", "Two answers"], ["decided", "When is it decided?"]],
  });
  stage.append(view.element, place);
  views[view.value](place, network, signal, done);
}

/** x̂_0 with and without the subject, the line through both, and full runs along it. */
function answersView(place, network, signal, done) {
  const { element, say } = status("Choose a subject and ask twice: with it and without.");
  if (!network.card.unconditional || !network.subjects.length || !network.isOfPixels) {
    place.replaceChildren(el("p", { class: "hint" }, "This needs a model of pixels that can be asked with and without a subject."));
    return;
  }
  const subject = choice({ label: "Subject", options: network.subjects.slice(0, 10).map((each) => [each, each]), value: network.subjects[0] });
  const [without, withIt, guided] = [["Without the subject", "without"], ["With the subject", "with"], ["Guided", ""]].map(([name, caption]) => frame(name, { caption }));
  const runs = SCALES.map((scale) => frame(`Guidance ${scale}`, { caption: `s = ${scale}` }));
  const diagram = el("div");
  let answers = null;
  const scale = slider({ label: "Guidance s", min: 0, max: 10, step: 0.5, value: 1, text: String, oninput: () => { show(); done(); } });
  scale.input.disabled = true;
  let seed = randomSeed();

  function show() {
    if (!answers) return;
    const s = scale.value;
    guided.show(combined((u, c) => u + s * (c - u), answers.without, answers.withIt));
    guided.caption(`without + ${s}·(with − without)`);
    diagram.replaceChildren(arrowsOf(answers, s));
  }

  const ask = actionButton("Ask twice", async () => {
    seed = randomSeed();
    say("The same noise, once with the subject and once without …");
    const base = { seed, n: 1, steps: 12, sampler: "ddim", guidance_scale: 1, preview: "x0", preview_every: 1 };
    const [one, two] = await Promise.all([network.run({ ...base, ...network.asked(subject.value) }, { signal }), network.run(base, { signal })]);
    answers = await firstAnswers(network, one, two);
    without.show(answers.without);
    withIt.show(answers.withIt);
    scale.input.disabled = false;
    scale.set(3);
    show();
    say("Both are blurs of the first step; the line through them is where guidance goes.", "good");
  }, { say, signal });

  const make = actionButton("Make the strip", async () => {
    say("Five full runs from the same noise …");
    const all = await Promise.all(SCALES.map((s) => network.run({ ...network.asked(subject.value), seed, n: 1, guidance_scale: s, preview_every: 0 }, { signal })));
    await Promise.all(all.map(async (run, k) => runs[k].show((await network.finished(run))[0])));
    say("From left to right: more and more what was asked for, with less and less variety.", "good");
    done();
  }, { say, signal, primary: false });

  place.replaceChildren(subject.element, row(ask), strip([without, withIt, guided]), scale.element, diagram, row(make), strip(runs), element);
}

/** The predictions of the first step, from the same x_t. */
async function firstAnswers({ card }, one, two) {
  const [withIt, without] = await Promise.all([one, two].map((run) => decode(run.file("x0", run.steps[0].step), card.channels)));
  return { withIt, without };
}

/** The two answers as arrows from a gray picture, drawn in the plane through both, with their true lengths and angle. */
function arrowsOf({ without, withIt }, s) {
  const gray = -mean((a) => -a, without);
  const [u, c] = [without, withIt].map((each) => combined((a) => a - gray, each));
  const dot = (a, b) => mean((x, y) => x * y, a, b);
  const [uu, uc, cc] = [dot(u, u), dot(u, c), dot(c, c)];
  const first = Math.sqrt(uu) || 1e-9;
  const [along, across] = [uc / first, Math.sqrt(Math.max(0, cc - (uc / first) ** 2))];
  const end = [first + s * (along - first), s * across];
  const size = 1.1 * Math.max(first, Math.abs(end[0]), end[1], along, across);
  const at = ([a, b]) => [20 + (360 * Math.max(0, a)) / size, 165 - (140 * b) / size];
  const arrow = (to, cls, name) => {
    const [x, y] = at(to);
    return [svg("path", { class: cls, d: `M20 165L${x.toFixed(1)} ${y.toFixed(1)}` }), svg("circle", { cx: x, cy: y, r: 3.5, class: "bar" }), svg("text", { x: Math.min(x + 7, 330), y: y - 6 }, name)];
  };
  const [ux, uy] = at([first, 0]);
  const [ex, ey] = at(end);
  return svg("svg", { class: "chart arrows-chart", viewBox: "0 0 420 185", role: "img", "aria-label": `Two arrows: the answer without and with the subject, and the guided one at ${s}` },
    svg("path", { class: "mark-line", "stroke-dasharray": "3 4", d: `M${ux} ${uy}L${ex} ${ey}` }),
    ...arrow([first, 0], "second", "without"), ...arrow([along, across], "first", "with"), ...arrow(end, "mark-line", `s = ${s}`));
}

/** Two moons as two subjects: the subject is changed at step k of the walk. The denoiser of each moon is exact. */
function decidedView(place, network, signal, done) {
  const { element, say } = status();
  const points = moons();
  const half = points.length / 2;
  const [upper, lower] = [new Mixture(points.slice(0, half), 0.05), new Mixture(points.slice(half), 0.05)];
  const plane = new Plane({ name: "Balls that were sent to the upper moon first and to the lower moon later" });
  Object.assign(plane, { points, mixture: new Mixture(points, 0.05), shows: { density: false, arrows: false, points: true } });
  const change = slider({ label: "Change the subject after step", min: 0, max: SWITCH_STEPS, value: 20, text: (k) => `${k} of ${SWITCH_STEPS}`, oninput: () => { show(); done(); } });

  function show() {
    const normal = normalNumbers(4);
    const levels = trailingLevels(SWITCH_STEPS);
    const balls = Array.from({ length: BALLS }, () => {
      let at = /** @type {[number, number]} */ ([normal(), normal()]);
      const way = [at];
      for (let k = 0; k < SWITCH_STEPS; k += 1) {
        at = ddimStep(k < change.value ? upper : lower, at, levels[k], levels[k + 1]);
        way.push(at);
      }
      return { at, way };
    });
    const near = (ball, moon) => Math.min(...moon.means.map(([x, y]) => Math.hypot(ball.at[0] - x, ball.at[1] - y)));
    const arrived = balls.filter((ball) => near(ball, upper) < near(ball, lower));
    for (const ball of balls) ball.color = arrived.includes(ball) ? "#ffb48f" : "#7cd4ff";
    plane.balls = balls;
    plane.level = { t: -1, alpha: 1, sigma: 0 };
    plane.draw();
    say(`Sent to the upper moon for ${change.value} steps and to the lower one for ${SWITCH_STEPS - change.value}: ${arrived.length} of ${BALLS} end in the upper one.`);
  }

  place.replaceChildren(change.element, plane.element, element, el("p", { class: "hint" }, "Each moon is a subject with an exact denoiser. The server’s requests keep one subject for the whole run, so this is shown in the plane."));
  show();
}
