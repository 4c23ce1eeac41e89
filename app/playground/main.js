/** The page, put together. */

import { Deeds } from "./actions.js";
import { announce, byId, calm, closeMenus, say } from "./dom.js";
import { door } from "./door.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { Jobs } from "./jobs.js";
import { Server } from "./server.js";
import { Stage } from "./stage.js";
import { many, phase, titleOf, trouble } from "./words.js";

const ASK_MS = 2000; // between two looks at the queue while jobs wait or run

const server = new Server();
const jobs = new Jobs(server);
const form = new Form(submit);
const deeds = new Deeds({ jobs, form, server });
const stage = new Stage(jobs, deeds, server);
const gallery = new Gallery(jobs, deeds, choose, server);
form.onNoise = () => stage.preview(form.seed, form.card?.name);
form.onNoise();

async function submit(body, key) {
  const entry = await jobs.start(body, key);
  if (stage.entry !== entry) choose(entry);
}

function choose(entry) {
  stage.choose(entry);
  draw();
  const box = byId("seen").getBoundingClientRect();
  if (box.bottom < 60 || box.top > innerHeight - 60) byId("stage-title").scrollIntoView({ block: "start", behavior: calm() ? "auto" : "smooth" });
}

let drawing = false;

/** Everything that changed since the last animation frame, at the next one. */
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    if (stage.entry && !jobs.get(stage.entry.job.id)) stage.choose(null);
    stage.render();
    gallery.render(stage.entry);
    phases();
  });
}

function phases() {
  const words = phase(jobs.live.map((entry) => entry.status), server.state);
  say(byId("phase-words"), words);
  byId("phase").dataset.state = server.state === "away" || server.state === "no worker" ? "trouble" : server.state !== "ready" ? "waiting" : jobs.live.length ? "busy" : "ready";
  const title = words === "ready" ? "denoised" : `${words} – denoised`;
  if (document.title !== title) document.title = title;
}

jobs.addEventListener("change", draw);
jobs.addEventListener("milestone", ({ detail: { entry, what } }) => {
  const name = `${titleOf(entry.job)}, ${many(entry.job.n, "picture")}`;
  const words = { started: `${name}: started`, half: `${name}: half of the steps done`, succeeded: `${name}: finished`, failed: `${name}: failed`, canceled: `${name}: canceled` }[what];
  if (words) announce(words);
});

server.addEventListener("change", () => {
  form.offer(server.models);
  const words = trouble(server.state);
  byId("banner").hidden = !words;
  say(byId("banner"), words ?? "");
  draw();
});

/** The queue's places and what has ended unheard, while there is anything to know. */
async function ask() {
  const asking = server.state === "ready" || server.state === "no worker" || server.state === "starting";
  if (asking && jobs.live.length) await jobs.refresh().catch(() => server.soon());
  setTimeout(ask, ASK_MS);
}

let known = false;

/** What became of the jobs of earlier visits. */
async function recollect() {
  if (known || !jobs.all.length) return;
  known = true;
  await jobs.refresh().catch(() => { known = false; });
  if (!stage.entry && jobs.all.length) choose(jobs.all[0]);
}

door(server, recollect);
server.addEventListener("change", () => server.state !== "locked" && server.state !== "away" && recollect());
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat && !byId("form").hidden) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && server.soon());
closeMenus();
draw();
ask();
server.run();
