/** The first sight: one recorded film from noise to picture, played once, and examples to click. */

import { byId, el, prefersReducedMotion, setText } from "../shared/dom.js";
import { request } from "../shared/api.js";

const FILM = "/playground/stage/film.webp"; // a row of x_t, one of x̂_0 and one of ε̂, made by ops/examples.py
const [FIRST_TIME, TIME_STEP] = [999, 50]; // timesteps of its frames; the last one is the finished picture
const PLAY_MS = 2600;
const HOLD_MS = 250; // of noise before it begins
const STARTERS = 4;

/** Play the film on the viewer's canvases. Returns a function that stops it. @returns {() => void} */
export function playOpening() {
  let stopped = false;
  play(() => stopped).catch(() => {}); // without the film, the noise stays
  return () => {
    stopped = true;
    setText(byId("film-time"), "");
  };
}

async function play(isStopped) {
  const film = await createImageBitmap(await (await request(FILM)).blob());
  const size = film.height / 3; // of a picture, in pixels
  const frames = film.width / size;
  const show = (k) => {
    setText(byId("film-time"), `t = ${k === frames - 1 ? 0 : FIRST_TIME - TIME_STEP * k}`);
    ["xt", "x0", "eps"].forEach((id, row) => {
      const canvas = byId(id);
      if (canvas.width !== size || canvas.height !== size) [canvas.width, canvas.height] = [size, size];
      canvas.getContext("2d").drawImage(film, k * size, row * size, size, size, 0, 0, size, size);
    });
  };
  if (isStopped()) return;
  if (prefersReducedMotion()) return show(Math.round(0.6 * frames));
  show(0);
  await new Promise((resolve) => setTimeout(resolve, HOLD_MS));
  const begin = performance.now();
  const tick = (now) => {
    if (isStopped()) return;
    const k = Math.min(frames - 1, Math.floor((frames * (now - begin)) / PLAY_MS));
    show(Math.max(0, k));
    if (k < frames - 1) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}

/** Offer some subjects of a model. @param {any} card @param {(subject: string) => void} onStart */
export function offerStarters(card, onStart) {
  const subjects = card.labels.length ? spread(card.labels) : (card.prompt_guide?.examples ?? []).slice(0, STARTERS);
  byId("starters-line").dataset.offered = String(subjects.length > 0);
  byId("starters").replaceChildren(...subjects.map((subject) => el("button", { type: "button", class: "example", title: subject, onclick: () => onStart(subject) }, nameOf(card, subject))));
}

/** A label, or what a prompt shows: its first part. */
const nameOf = (card, subject) => card.labels.length ? subject : subject.split(",")[0];

/** A few labels from the whole list. */
const spread = (labels) => Array.from({ length: Math.min(STARTERS, labels.length) }, (_, k) => labels[Math.floor(((k + 0.75) * labels.length) / STARTERS) % labels.length]);
