/** Card 2: the density of hand-drawn points, and its score, at every noise level. */

import { el } from "../../shared/dom.js";
import { Mixture } from "../math/mixture.js";
import { COSINE } from "../math/schedule.js";
import { PRESETS } from "../math/shapes.js";
import { button, choice, row, slider, status } from "../parts/controls.js";
import { Plane } from "../parts/plane.js";

const SPREAD = 0.05; // standard deviation of each hill without noise
const MOST_POINTS = 240;
const APART = 0.05; // between two points of one stroke

export function mount(stage, { done }) {
  const { element, say } = status();
  const pixels = [el("span"), el("span")];
  const plane = new Plane({ name: "The plane of pictures with two pixels. Arrow keys move a cross, Enter adds a point.", onpoint: add, onhover: showPixels });
  const shape = choice({ label: "Points", options: [...Object.keys(PRESETS), "My own"].map((each) => [each, each]), value: "Two moons", onchange: choose });
  const noise = slider({
    label: "Noise level", min: 0, max: 999, value: 120, oninput: (t) => { setLevel(t); done(); },
    text: (t) => `t = ${t}, σ = ${COSINE[t].sigma.toFixed(2)}`,
  });

  function choose(name) {
    setPoints(name === "My own" ? [] : PRESETS[name]());
    if (name === "My own") say("Draw on the plane, or move the cross with the arrow keys and press Enter.");
  }

  function setPoints(points) {
    plane.points = points;
    plane.mixture = points.length ? new Mixture(points, SPREAD) : null;
    setLevel(noise.value);
  }

  function setLevel(t) {
    plane.level = COSINE[t];
    const { sigma } = COSINE[t];
    if (plane.points.length) say(sigma < 0.2 ? "A hill at every point: the density knows each example." : sigma < 0.75 ? "The hills run together: the shape is left, the single points are gone." : "One wide hill: all that is left is where the middle is.");
    plane.draw();
  }

  function add(point, drag) {
    const last = plane.points.at(-1);
    if (shape.value !== "My own") { shape.set("My own"); plane.points = []; }
    const { alpha } = plane.level;
    const clean = /** @type {[number, number]} */ (point.map((each) => each / Math.max(alpha, 0.3)));
    if (drag && last && Math.hypot(clean[0] - last[0], clean[1] - last[1]) < APART) return;
    if (plane.points.length < MOST_POINTS) setPoints([...plane.points, clean]);
    done();
  }

  function showPixels(point) {
    point.forEach((each, i) => { pixels[i].style.background = `rgb(${Array(3).fill(Math.round(127.5 * (1 + Math.max(-1, Math.min(1, each / 1.3))))).join(" ")})`; });
  }

  stage.append(
    row(shape.element, button("Clear", () => { shape.set("My own"); choose("My own"); })), noise.element, plane.element,
    el("p", { class: "hint" }, el("span", { class: "two-pixels", "aria-hidden": "true" }, ...pixels), " The picture at the pointer: the first pixel is its place from left to right, the second from bottom to top."), element);
  showPixels([0.7, -0.4]);
  choose("Two moons");
}
