/** Card 5: guess the noise, first the visitor, then the network. */

import { el } from "../../shared/dom.js";
import { normalNumbers, randomSeed } from "../math/random.js";
import { levelOf } from "../math/schedule.js";
import { actionButton } from "../parts/action.js";
import { askedPicture } from "../parts/asked.js";
import { lineChart } from "../parts/chart.js";
import { button, row, slider, status } from "../parts/controls.js";
import { isOfPixels, otherModel } from "../parts/other-model.js";
import { combined, frame, mean, strip } from "../parts/pictures.js";
import { trainingPictures } from "../parts/training.js";

const CHOICES = 4;
const SHARE = 0.42; // of the timesteps: the noise is plain to see, and so is something of the picture

export function mount(stage, { network, signal, done }) {
  stage.append(yourGuess(network), el("h3", {}, "The network’s guess"), ...networkGuess(network, signal, done));
}

/** Four noises; one is in the picture. */
function yourGuess({ card }) {
  const { element, say } = status("Look at the plain parts of the picture: which pattern is there?");
  const level = levelOf(card, Math.round(SHARE * (card.timesteps - 1)));
  const noisy = frame("The noisy picture", { caption: "the noisy picture xₜ" });
  const rest = frame("What is left", { caption: "what is left when your noise is subtracted" });
  const guesses = el("div", { class: "strip", "data-columns": CHOICES });
  let classes = [];

  function deal() {
    const pictures = classes[Math.floor(Math.random() * classes.length)];
    if (!pictures) return;
    const x0 = pictures[Math.floor(Math.random() * pictures.length)];
    const noises = Array.from({ length: CHOICES }, () => { const normal = normalNumbers(randomSeed()); return combined(() => normal(), x0); });
    const right = Math.floor(Math.random() * CHOICES);
    const xt = combined((x, e) => level.alpha * x + level.sigma * e, x0, noises[right]);
    noisy.show(xt);
    rest.show(combined(() => -1, x0));
    guesses.replaceChildren(...noises.map((noise, k) => choiceOf(noise, k, k === right, xt)));
    say("Look at the plain parts of the picture: which pattern is there?");
  }

  function choiceOf(noise, k, isRight, xt) {
    const shown = frame(`Noise ${k + 1}`, { caption: `noise ${k + 1}` });
    shown.show(combined((e) => e / 2, noise));
    const pick = el("button", { type: "button", class: "guess", "aria-label": `Noise ${k + 1}`, onclick: () => {
      rest.show(combined((x, e) => (x - level.sigma * e) / level.alpha, xt, noise));
      pick.dataset.kind = isRight ? "good" : "bad";
      say(isRight ? "Right: without its noise, the picture is there." : "Not this one: subtracting the wrong noise only adds more. Try another.", isRight ? "good" : "bad");
    } }, shown.element);
    return pick;
  }

  trainingPictures(card).catch(() => []).then((found) => {
    classes = found;
    box.hidden = !found.length;
    deal();
  });
  const box = el("div", { class: "stage-part" }, strip([noisy, rest]), guesses, element, row(button("Another one", deal)));
  return box;
}

/** ε̂ of the running network next to the noise that is there, at each level of a film, and the loss. */
function networkGuess(network, signal, done) {
  const { element, say } = status("It sees the noisy picture and the level, and nothing else.");
  const [seen, guessed, real, error] = [["What it sees", "it sees xₜ"], ["Its guess", "its guess ε̂"], ["The noise that is there", "the noise ε in it"], ["The difference", "the difference"]].map(([name, caption]) => frame(name, { caption }));
  const chart = el("div");
  const asked = askedPicture(network);
  const hint = el("p", { class: "hint" });
  let film = null;
  const position = slider({ label: "Noise level", min: 0, max: 0, value: 0, oninput: show, text: (k) => (film ? levelText(film.predictions[k]) : "no guess yet") });
  position.input.disabled = true;

  function show() {
    const at = film.predictions[position.value];
    const truth = combined((x, d) => (x - at.alpha * d) / at.sigma, at.xt, film.picture);
    seen.show(at.xt);
    guessed.show(combined((e) => e / 2, at.epsilon));
    real.show(combined((e) => e / 2, truth));
    error.showSigned(combined((a, b) => a - b, at.epsilon, truth), 1);
    film.chart.mark(position.value);
    say(`Mean squared error ${lossOf(at, film.picture).toPrecision(2)}; guessing nothing would cost 1.`);
  }

  const ask = actionButton("Let the network guess", async () => {
    say("The network guesses at many levels, from noise to picture …");
    const { isOwn } = asked;
    film = await asked.predictions({ signal });
    hint.textContent = isOwn ? "The noise that is there was added to your picture, as in training." : "The noise that is there is what lies between xₜ and the picture at the end of the film. In training, the picture is given beforehand, so the loss there is higher.";
    const losses = film.predictions.map((each, k) => /** @type {[number, number]} */ ([k, lossOf(each, film.picture)]));
    film.chart = lineChart("The loss at each level", losses, { low: "much noise", high: "little noise" });
    chart.replaceChildren(el("p", { class: "hint" }, "The loss at each level:"), film.chart.element);
    position.range(film.predictions.length - 1, false);
    position.input.value = String(Math.round(0.45 * film.predictions.length));
    position.set(position.value);
    show();
    done();
  }, { say, signal });

  if (!network.isOfPixels) return [otherModel("This model denoises latents, whose noise is no picture.", network, isOfPixels)];
  return [asked.element, row(ask, position.element), strip([seen, guessed, real, error]), element, chart, hint];
}

const levelText = ({ t, sigma }) => `t = ${Math.round(t)}, σ = ${sigma.toFixed(2)}`;

/** mean (ε̂ − ε)² = (α/σ)²·mean (x̂_0 − x_0)², because both pairs make the same x_t. */
const lossOf = ({ alpha, sigma, x0 }, finished) => (alpha / sigma) ** 2 * mean((a, b) => (a - b) ** 2, x0, finished);
