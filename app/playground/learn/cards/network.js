/** Card 8: the shapes of the running model's network, level by level, and what each costs. */

import { el, svg } from "../../shared/dom.js";
import { request } from "../../shared/api.js";
import { status } from "../parts/controls.js";
import { otherModel } from "../parts/other-model.js";
import { cut, decode, frame, strip } from "../parts/pictures.js";

const RECORDED = "fashion-mnist"; // the model whose feature maps were recorded
const MAPS = 8; // a level
const units = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

/** "12.3 M" */
function amount(value) {
  const [size, unit] = units.find(([each]) => value >= each) ?? [1, ""];
  return `${(value / size).toPrecision(3).replace(/\.0+$/, "")} ${unit}`.trim();
}

export function mount(stage, { network, done }) {
  const { card } = network;
  const levels = card.network?.levels ?? [];
  if (!levels.length) {
    stage.append(otherModel("This model’s worker does not say how its network is built.", network, (each) => each.network?.levels?.length > 0));
    return;
  }
  const { element, say } = status("Each bar is a level’s share of the arithmetic.");
  const most = Math.max(...levels.map((each) => each.multiplications));
  const total = levels.reduce((sum, each) => sum + each.multiplications, 0);
  const list = el("div", { class: "levels", role: "group", "aria-label": "Levels of the network" });

  const bar = (level, k) => {
    const fill = el("span", { class: "fill" });
    fill.style.transform = `scaleX(${level.multiplications / most})`;
    const share = Math.round((100 * level.multiplications) / total);
    const pick = el("button", { type: "button", class: "level", "aria-pressed": "false", onclick: () => {
      for (const each of list.children) each.setAttribute("aria-pressed", String(each === pick));
      for (const each of drawing.querySelectorAll(".block")) each.classList.toggle("chosen", each.getAttribute("data-level") === String(k));
      maps.show(k);
      say(describe(level, k, share));
      done();
    } }, el("span", {}, `${level.height}×${level.width}`), el("span", { class: "rail", "aria-hidden": "true" }, fill), el("span", {}, `${share} %`));
    return pick;
  };

  function describe({ channels, height, width, parameters, multiplications, attention }, k, share) {
    const place = k === 0 ? "The top" : k === levels.length - 1 ? "The bottom" : `Level ${k + 1}`;
    return `${place}: ${channels} channels of ${height}×${width} values, ${amount(parameters)} parameters, ${amount(multiplications)} multiplications (${share} %).${attention ? " It has attention: every position sees every other." : ""}`;
  }

  const drawing = shapes(levels);
  const maps = featureMaps(card);
  list.append(...levels.map(bar));
  stage.append(
    el("p", {}, `In: ${inputOf(card)}, and t. Out: as many values.`),
    drawing, list, element, maps.element,
    el("p", { class: "hint" }, `${amount(card.network.parameters)} parameters in all; ${amount(total)} multiplications for one evaluation of one picture.`));
}

/** What the network takes besides the noise level. */
function inputOf({ channels, height, width, latent, inputs = [] }) {
  const text = inputs.includes("prompt") ? ", the prompt" : "";
  if (!latent) return `a noisy picture of ${channels}×${height}×${width}${text}`;
  return `noisy latents of ${latent.channels}×${height / latent.downscale}×${width / latent.downscale}${text}`;
}

/** Feature maps of the bundled model, recorded by ops/examples.py: a row for each level. */
function featureMaps({ name, height }) {
  const frames = Array.from({ length: MAPS }, (_, k) => frame(`Feature map ${k + 1}`, { caption: "" }));
  const element = el("div", { hidden: true }, el("h3", {}, "Eight of its feature maps, for a noisy sneaker"), strip(frames, 16));
  const show = async (level) => {
    if (name !== RECORDED) return;
    const sheet = await decode(await (await request(`/playground/learn/examples/${RECORDED}-features.png`)).blob(), 1);
    frames.forEach((each, k) => each.show(cut(sheet, k * height, level * height, height, height, 1)));
    element.hidden = false;
  };
  return { element, show };
}

/** The levels as boxes, down on the left and up on the right: as high as their picture, as wide as their channels. */
function shapes(levels) {
  const [largest, deepest] = [Math.max(...levels.map((each) => each.height)), Math.max(...levels.map((each) => each.channels))];
  const last = levels.length - 1;
  const column = 420 / (2 * last + 1);
  const box = ({ height, channels }, k, place) => {
    const [wide, high] = [8 + (0.62 * column * channels) / deepest, 14 + (90 * height) / largest];
    const [x, y] = [place * column + (column - wide) / 2, 6 + 26 * k];
    return { k, x, y, wide, high, channels };
  };
  const boxes = [...levels.map((each, k) => box(each, k, k)), ...levels.slice(0, -1).map((each, k) => box(each, k, 2 * last - k))];
  const skips = levels.slice(0, -1).map((_, k) => {
    const [down, up] = [boxes[k], boxes[last + 1 + k]];
    return svg("path", { class: "skip-line", d: `M${down.x + down.wide} ${down.y + 9}H${up.x}` });
  });
  const name = `A U: ${levels.map((each) => `${each.channels} channels of ${each.height} by ${each.width}`).join(", then ")}, and back up again`;
  return svg("svg", { class: "chart blocks", viewBox: `0 0 420 ${20 + Math.max(...boxes.map(({ y, high }) => y + high))}`, role: "img", "aria-label": name }, ...skips,
    ...boxes.flatMap(({ k, x, y, wide, high, channels }) => [
      svg("rect", { class: "block", "data-level": k, x, y, width: wide, height: high, rx: 4 }),
      svg("text", { x: x + wide / 2, y: y + high + 14, "text-anchor": "middle" }, String(channels))]));
}
