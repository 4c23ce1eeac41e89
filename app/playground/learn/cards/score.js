/** Card 6: ε̂ as a heat map and as arrows, and the way that −ε̂/σ shows. */

import { el } from "../../shared/dom.js";
import { actionButton } from "../parts/action.js";
import { askedPicture } from "../parts/asked.js";
import { choice, row, slider, status } from "../parts/controls.js";
import { isOfPixels, otherModel } from "../parts/other-model.js";
import { combined, frame, mean, strip } from "../parts/pictures.js";

const MOST_ARROWS = 14; // along each side
const ARROW_SCALE = 2.5; // the value of an arrow as long as its pixel

export function mount(stage, { network, signal, done }) {
  if (!network.isOfPixels) {
    stage.append(otherModel("This model denoises latents, whose score is no picture.", network, isOfPixels));
    return;
  }
  const { element, say } = status("Ask the network first.");
  const moved = frame("The picture on its way", { caption: "" });
  const map = frame("Heat map", { caption: "" });
  const arrows = frame("Arrows", { caption: "arrows of the score" });
  const asked = askedPicture(network);
  let film = null;
  const sign = choice({ label: "Heat map of", options: [["noise", "predicted noise ε̂"], ["score", "score −ε̂/σ"]], value: "noise", onchange: show });
  const level = slider({ label: "Noise level", min: 0, max: 0, value: 0, oninput: () => show(), text: (k) => (film ? `σ = ${film.predictions[k].sigma.toFixed(2)}` : "–") });
  const way = slider({ label: "How far to follow the arrows", min: 0, max: 100, value: 0, text: (share) => `${share} %`, oninput: () => { show(); if (film) done(); } });
  level.input.disabled = true;
  way.input.disabled = true;

  function show() {
    if (!film) return;
    const { xt, epsilon, alpha, sigma } = film.predictions[level.value];
    const share = way.value / 100;
    const score = combined((e) => -e / sigma, epsilon);
    const step = sigma ** 2;
    // Divided by 1 … α on the way, so that the picture keeps its contrast.
    moved.show(combined((x, s) => (x + share * step * s) / (1 - share + share * alpha), xt, score));
    moved.caption(share === 0 ? "xₜ" : share === 1 ? "x̂₀" : "on the way");
    if (sign.value === "noise") map.showSigned(epsilon);
    else map.showSigned(combined((e) => -e, epsilon));
    map.caption(sign.value === "noise" ? "ε̂: orange is too bright, blue too dark" : "score: orange is “brighter”, blue “darker”");
    drawArrows(arrows.canvas, epsilon);
    say(`Norm of the score: ${Math.sqrt(mean((s) => s ** 2, score) * score.data.length).toFixed(0)}. ${share === 1 ? "You are at the predicted picture x̂₀." : "The more noise, the shorter the arrows."}`);
  }

  const ask = actionButton("Ask the network", async () => {
    say("The network predicts the noise at many levels …");
    film = await asked.predictions({ signal });
    level.range(film.predictions.length - 1, false);
    level.set(Math.round(0.55 * film.predictions.length));
    way.input.disabled = false;
    way.set(0);
    show();
  }, { say, signal });

  stage.append(asked.element, row(ask, level.element), strip([moved, map, arrows]), sign.element, way.element, element);
}

/** An arrow for every second pixel, or fewer in larger pictures: up for brighter, down for darker. */
function drawArrows(canvas, { width, height, channels, data }) {
  const cells = Math.min(MOST_ARROWS, width);
  const stride = width / cells;
  const size = 22;
  if (canvas.width !== cells * size) [canvas.width, canvas.height] = [cells * size, Math.round(height / stride) * size];
  const context = canvas.getContext("2d");
  context.fillStyle = "#0b0a0a";
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (let row = 0; row < Math.round(height / stride); row += 1) {
    for (let column = 0; column < cells; column += 1) {
      const value = -data[(Math.floor(row * stride) * width + Math.floor(column * stride)) * channels];
      const length = Math.max(-1, Math.min(1, value / ARROW_SCALE)) * 0.46 * size;
      const [x, y] = [(column + 0.5) * size, (row + 0.5) * size];
      context.strokeStyle = value < 0 ? "#5c9cff" : "#ff9a6c";
      context.lineWidth = 2;
      context.beginPath();
      context.moveTo(x, y + length);
      context.lineTo(x, y - length);
      const head = Math.min(4.5, Math.abs(length)) * Math.sign(length);
      context.moveTo(x - Math.abs(head), y - length + head);
      context.lineTo(x, y - length);
      context.lineTo(x + Math.abs(head), y - length + head);
      context.stroke();
    }
  }
}
