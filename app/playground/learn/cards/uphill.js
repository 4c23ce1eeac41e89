/** Card 3: walks in the density: the plain gradient, one level, many levels; with noise and without. */

import { prefersReducedMotion } from "../../shared/dom.js";
import { Mixture } from "../math/mixture.js";
import { normalNumbers, randomSeed, uniformNumbers } from "../math/random.js";
import { COSINE, trailingLevels } from "../math/schedule.js";
import { PRESETS } from "../math/shapes.js";
import { ddimStep, gradientStep, langevinStep } from "../math/walks.js";
import { actionButton } from "../parts/action.js";
import { choice, row, slider, status } from "../parts/controls.js";
import { animate, Plane } from "../parts/plane.js";

const SPREAD = 0.05;
const BALLS = 40;
const EDGE = 2.2; // balls are dropped within −EDGE … EDGE
const STEPS = 60;
const DURATION = 2600; // ms
const HOME = 0.2; // a ball this near to a point has arrived
const GRADIENT_STEP = 0.02;

export function mount(stage, { signal, done }) {
  const { element, say } = status("Where will they go?");
  const plane = new Plane({ name: "The density and its score. Arrow keys move a cross, Enter drops a ball there.", onpoint: (point, drag) => !drag && walk([point]) });
  const shape = choice({ label: "Points", options: Object.keys(PRESETS).map((each) => [each, each]), value: "Spiral", onchange: (name) => { setShape(name); setLevel(); } });
  const way = choice({
    label: "Way", value: "gradient", onchange: () => setLevel(),
    options: [["gradient", "gradient of p"], ["score", "score, one level"], ["levels", "score, many levels"]],
  });
  const noise = choice({ label: "Fresh noise", options: [["no", "without"], ["yes", "with"]], value: "no" });
  const level = slider({ label: "Noise level", min: 20, max: 900, value: 120, text: (t) => `σ = ${COSINE[t].sigma.toFixed(2)}`, oninput: () => setLevel() });
  let walking = new AbortController();
  signal.addEventListener("abort", () => walking.abort());

  function setShape(name) {
    plane.points = PRESETS[name]();
    plane.mixture = new Mixture(plane.points, SPREAD);
    plane.balls = [];
  }

  function setLevel() {
    walking.abort();
    level.element.hidden = way.value === "levels";
    plane.level = way.value === "levels" ? COSINE[999] : COSINE[level.value];
    plane.draw();
  }

  /** Walk from the given places, all balls together. */
  async function walk(places) {
    walking.abort();
    walking = new AbortController();
    const { signal: stopped } = walking;
    const balls = places.map((at) => ({ at, way: [at] }));
    plane.balls = balls;
    const move = mover(way.value, noise.value === "yes" ? normalNumbers(randomSeed()) : null);
    say(`${balls.length === 1 ? "One ball walks" : `${balls.length} balls walk`} …`);
    await animate(STEPS, DURATION, (k) => {
      for (const ball of balls) {
        ball.at = move(ball.at, k);
        ball.way.push(ball.at);
      }
      plane.draw();
    }, stopped);
    if (stopped.aborted) return;
    report(balls);
    done();
  }

  /** The function that moves a ball at step k of STEPS. */
  function mover(kind, normal) {
    const { mixture } = plane;
    if (kind === "levels") {
      const levels = trailingLevels(STEPS);
      return (at, k) => {
        plane.level = levels[k + 1].sigma ? levels[k + 1] : COSINE[0];
        return ddimStep(mixture, at, levels[k], levels[k + 1], normal ? 1 : 0, normal ?? undefined);
      };
    }
    const fixed = COSINE[level.value];
    const variance = (fixed.alpha * SPREAD) ** 2 + fixed.sigma ** 2;
    if (kind === "score") return (at) => langevinStep(mixture, at, fixed, 0.15 * variance, normal);
    return (at) => gradientStep(mixture, at, fixed, GRADIENT_STEP).map((each) => each + (normal ? 0.02 * normal() : 0));
  }

  function report(balls) {
    const { alpha } = plane.level;
    const home = balls.filter(({ at }) => plane.points.some(([x, y]) => Math.hypot(at[0] - alpha * x, at[1] - alpha * y) < HOME)).length;
    const moved = balls.reduce((sum, { at, way: [from] }) => sum + Math.hypot(at[0] - from[0], at[1] - from[1]), 0) / balls.length;
    const verdict = moved < 0.25 ? "The hill is flat where they are: they hardly moved." : home > 0.9 * balls.length ? "They came home, and to different places." : "Many are left in between.";
    say(`${home} of ${balls.length} ended near a point. ${verdict}`, home > 0.9 * balls.length ? "good" : "");
  }

  const drop = actionButton(`Drop ${BALLS} balls`, () => {
    const uniform = uniformNumbers(randomSeed());
    return walk(Array.from({ length: BALLS }, () => [EDGE * (2 * uniform() - 1), EDGE * (2 * uniform() - 1)]));
  }, { say, signal });

  stage.append(row(shape.element, way.element, noise.element), row(drop, level.element), plane.element, element);
  setShape("Spiral");
  setLevel();
  if (prefersReducedMotion()) say("Balls move at once, because this browser asks for reduced motion.");
}
