/** Builds the page and connects its parts. */

import { JobActions } from "./stage/actions.js";
import { announce, byId, closeMenus, prefersReducedMotion, setText } from "./shared/dom.js";
import { setUpLogin } from "./shared/login.js";
import { Form } from "./form/form.js";
import { Gallery } from "./stage/gallery.js";
import { Jobs } from "./stage/jobs.js";
import { Server } from "./shared/server.js";
import * as storage from "./shared/storage.js";
import { acceptDrops } from "./stage/dropped.js";
import { enlargeOnClick } from "./stage/enlarge.js";
import { offerStarters, playOpening } from "./stage/opening.js";
import { Viewer } from "./stage/viewer.js";
import { outageText, plural, statusText, titleOf } from "./shared/text.js";

const REFRESH_MS = 2000; // between two requests for the queue while jobs are queued or running

const server = new Server();
const jobs = new Jobs(server);
const form = new Form(submit);
const actions = new JobActions({ jobs, form, server });
const viewer = new Viewer(jobs, actions, server);
const gallery = new Gallery(jobs, actions, choose, server);
const stopOpening = playOpening();
form.onSeedChange = (byVisitor) => {
  if (byVisitor) stopOpening();
  viewer.preview(form.seed, form.card?.name, byVisitor);
};
acceptDrops({ jobs, form, choose });
enlargeOnClick(viewer, actions);

async function submit(body, key) {
  const entry = await jobs.start(body, key);
  form.sent(body, entry.job);
  if (viewer.entry !== entry) choose(entry);
}

function choose(entry) {
  stopOpening();
  viewer.choose(entry);
  draw();
  const box = byId("xt").getBoundingClientRect();
  if (box.bottom < 60 || box.top > innerHeight - 60) byId("viewer-title").scrollIntoView({ block: "start", behavior: prefersReducedMotion() ? "auto" : "smooth" });
}

let drawScheduled = false;

/** Redraw everything at the next animation frame, however often this is called. */
function draw() {
  if (drawScheduled) return;
  drawScheduled = true;
  requestAnimationFrame(() => {
    drawScheduled = false;
    if (viewer.entry && !jobs.get(viewer.entry.job.id)) viewer.choose(null);
    viewer.render();
    gallery.render(viewer.entry);
    renderStatus();
  });
}

function renderStatus() {
  const text = statusText(jobs.live.map((entry) => entry.status), server.state);
  setText(byId("status-text"), text);
  byId("status").dataset.state = server.state === "unreachable" || server.state === "no worker" ? "trouble" : server.state !== "ready" ? "waiting" : jobs.live.length ? "busy" : "ready";
  const title = text === "ready" ? "denoised" : `${text} – denoised`;
  if (document.title !== title) document.title = title;
}

jobs.addEventListener("change", draw);
jobs.addEventListener("milestone", ({ detail: { entry, what } }) => {
  const name = `${titleOf(entry.job)}, ${plural(entry.job.n, "picture")}`;
  const text = { started: `${name}: started`, half: `${name}: half of the steps done`, succeeded: `${name}: finished`, failed: `${name}: failed`, canceled: `${name}: canceled` }[what];
  if (text) announce(text);
});

server.addEventListener("change", () => {
  form.setModels(server.models, server.requestSchema);
  form.serverChanged(server.state);
  if (form.card) offerStarters(form.card, (subject) => form.start(subject));
  const text = outageText(server.state);
  byId("banner").hidden = !text;
  setText(byId("banner"), text ?? "");
  document.body.dataset.met = "";
  draw();
});

/** While jobs are live, refresh their places in the queue and any end that was missed. */
async function refresh() {
  const connected = server.state === "ready" || server.state === "no worker" || server.state === "starting";
  if (connected && jobs.live.length) await jobs.refresh().catch(() => server.checkNow());
  setTimeout(refresh, REFRESH_MS);
}

let restored = false;

/** Update the jobs of earlier visits, once. */
async function restoreJobs() {
  if (restored || !jobs.all.length) return;
  restored = true;
  await jobs.refresh().catch(() => { restored = false; });
  if (!viewer.entry && jobs.all.length) choose(jobs.all[0]);
  actions.restoreComparison();
}

/** Show small pictures smooth or as pixels, as the visitor chose at the last visit. */
function setSmooth(smooth) {
  byId("smooth").setAttribute("aria-pressed", String(smooth));
  document.body.dataset.smooth = String(smooth);
  storage.saveSmooth(smooth);
}

setSmooth(storage.loadSmooth());
byId("smooth").addEventListener("click", () => setSmooth(byId("smooth").getAttribute("aria-pressed") !== "true"));
setUpLogin(server, restoreJobs);
server.addEventListener("change", () => server.state !== "locked" && server.state !== "unreachable" && restoreJobs());
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat && !byId("form").hidden) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && server.checkNow());
closeMenus();
draw();
refresh();
server.run();
