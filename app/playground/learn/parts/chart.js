/** Small charts: the schedule's curves, and values by noise level. */

import { svg } from "../../shared/dom.js";

const [WIDTH, HEIGHT] = [420, 110];
const [LEFT, RIGHT, TOP, BOTTOM] = [26, 8, 8, 18];

const x = (share) => LEFT + share * (WIDTH - LEFT - RIGHT);
const y = (share) => HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
const path = (points) => points.map(([across, up], i) => `${i ? "L" : "M"}${x(across).toFixed(1)} ${y(up).toFixed(1)}`).join("");
const text = (across, down, content, anchor = "start") => svg("text", { x: across, y: down, "text-anchor": anchor }, content);

function axes(name, low, high, top) {
  return svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": name },
    svg("path", { class: "axis", d: `M${x(0)} ${y(1)}V${y(0)}H${x(1)}` }),
    text(x(0), HEIGHT - 4, low), text(x(1), HEIGHT - 4, high, "end"), text(LEFT - 5, y(1) + 8, top, "end"), text(LEFT - 5, y(0), "0", "end"));
}

/** α and σ over the timesteps, with a mark. @param {(t: number) => {alpha: number, sigma: number}} levelAt */
export function levelsChart(levelAt, last) {
  const times = Array.from({ length: 81 }, (_, i) => Math.round((i * last) / 80));
  const curve = (name) => path(times.map((t) => [t / last, levelAt(t)[name]]));
  const line = svg("path", { class: "mark-line" });
  const element = axes("The picture's share α falls from 1 to 0 while the noise's share σ rises from 0 to 1", "t = 0", `t = ${last}`, "1");
  element.append(svg("path", { class: "second", d: curve("alpha") }), svg("path", { class: "first", d: curve("sigma") }), line,
    text(x(0.03), y(0.6), "α: the picture"), text(x(0.97), y(0.6), "σ: the noise", "end")); // between the curves
  return { element, mark: (t) => line.setAttribute("d", `M${x(t / last)} ${y(1)}V${y(0)}`) };
}

/** Values by step, as a line with a mark. @param {string} name @param {[number, number][]} points place and value @param {{low: string, high: string}} ends */
export function lineChart(name, points, { low, high, top = null }) {
  const highest = top ?? Math.max(...points.map(([, value]) => value), 1e-9);
  const first = points[0][0];
  const span = points[points.length - 1][0] - first || 1;
  const line = svg("path", { class: "mark-line" });
  const element = axes(name, low, high, highest >= 10 ? String(Math.round(highest)) : highest.toFixed(highest >= 1 ? 1 : 2));
  element.append(svg("path", { class: "first", d: path(points.map(([place, value]) => [(place - first) / span, Math.min(1, value / highest)])) }), line);
  return { element, mark: (place) => line.setAttribute("d", `M${x((place - first) / span)} ${y(1)}V${y(0)}`) };
}
