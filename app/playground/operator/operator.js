/** The operator's page: workers, queues and the quotas of all keys, refreshed while it is open. */

import { json } from "../shared/api.js";
import { announce, byId, setText } from "../shared/dom.js";
import { setUpLogin } from "../shared/login.js";
import { Server } from "../shared/server.js";
import { durationText, factsOfModel, outageText, plural } from "../shared/text.js";
import { RateTracker } from "./rates.js";
import { count, table, usedOf } from "./tables.js";

const REFRESH_MS = 2000;
const FORBIDDEN = 403;
const QUOTAS = {
  jobs: "waiting jobs", evaluations: "waiting evaluations", jobs_per_key: "waiting jobs", evaluations_per_key: "waiting evaluations",
  evaluations_per_minute: "this minute", evaluations_per_day: "today", images: "stored images", streams_per_key: "open streams",
};

const server = new Server();
const tracker = new RateTracker();
let paused = false;

async function refresh() {
  if (paused || document.hidden || !["ready", "starting", "no worker"].includes(server.state)) return;
  try {
    const [fleet, usage] = await Promise.all([json("/workers"), fetchUsage()]);
    showTotals(fleet, tracker.update(fleet.workers));
    showModels(fleet);
    showUsage(usage);
  } catch (error) {
    if (error.status !== 401) server.checkNow();
  }
}

/** The quotas of all keys; of the caller's own, if it may not see those. */
async function fetchUsage() {
  try {
    return { keys: (await json("/usage/keys")).keys, isAll: true };
  } catch (error) {
    if (error.status !== FORBIDDEN) throw error;
    return { keys: [await json("/usage")], isAll: false };
  }
}

function showTotals(fleet, ratesOf) {
  const [jobs, evaluations] = ["jobs", "evaluations"].map((name) => fleet.waiting.reduce((sum, queue) => sum + queue[name], 0));
  const speed = fleet.workers.reduce((sum, { name }) => sum + (ratesOf(name)?.evaluations ?? 0), 0);
  const clock = new Date(fleet.at * 1000).toLocaleTimeString();
  setText(byId("totals"), `${clock} · ${plural(fleet.workers.length, "worker")} · ${count(Math.round(speed))} evaluations per second · ${plural(jobs, "job")} waiting, with ${plural(evaluations, "evaluation")}`);
  byId("workers").replaceChildren(table({
    name: "Workers", empty: "No worker is alive. Start one with denoised worker.",
    columns: ["worker", "device", "models", "images in the batch", "evaluations/s", "mean batch", "still to evaluate", "jobs started", "last report"],
    rows: fleet.workers.map((worker) => {
      const rates = ratesOf(worker.name);
      return [worker.name.replace(/^worker-/, ""), worker.device, worker.models.join(", "), usedOf(worker.trajectories, worker.max_batch),
        count(rates && Math.round(rates.evaluations)), count(rates?.meanBatch && Number(rates.meanBatch.toFixed(1))),
        count(worker.pending_evaluations), count(worker.jobs), `${Math.max(0, Math.round(fleet.at - worker.reported_at))} s ago`];
    }),
  }));
}

function showModels(fleet) {
  const cards = new Map(server.models.map((card) => [card.name, card]));
  byId("models").replaceChildren(table({
    name: "Models and queues", empty: "No model is served, and nothing waits.",
    columns: ["model", "workers", "waiting jobs", "waiting evaluations", "size, data, license"],
    rows: fleet.waiting.map(({ model, jobs, evaluations }) => {
      const serving = fleet.workers.filter((worker) => worker.models.includes(model)).length;
      return [model, count(serving), count(jobs), count(evaluations), cards.has(model) ? factsOfModel(cards.get(model)) : "not served now"];
    }),
  }));
}

function showUsage({ keys, isAll }) {
  const names = [...new Set(keys.flatMap(({ quotas }) => quotas.map(({ name }) => name)))];
  setText(byId("usage-note"), !server.needsKey ? "This server has no API keys: everybody shares these limits."
    : isAll ? "Keys that use nothing now are left out." : "This is not an operator’s key, so only its own quotas are shown.");
  byId("usage").replaceChildren(table({
    name: "Quotas of the keys", empty: "No key uses anything now.",
    columns: ["key", "weight", ...names.map((name) => QUOTAS[name] ?? name)],
    rows: keys.map(({ key, weight, quotas }) => [key || "everybody", count(weight), ...names.map((name) => quotaCell(quotas.find((each) => each.name === name)))]),
  }));
}

function quotaCell(quota) {
  if (!quota) return count(null);
  return usedOf(quota.used, quota.allowed, quota.resets_in === null ? "" : `some is free in ${durationText(quota.resets_in)}`);
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  announce(paused ? "The figures stand still." : "The figures are refreshed every two seconds.");
  refresh();
});
server.addEventListener("change", () => {
  const text = server.state === "locked" ? null : outageText(server.state);
  byId("banner").hidden = !text;
  setText(byId("banner"), text ?? "");
  refresh();
});
setUpLogin(server, refresh);
server.run();
setInterval(refresh, REFRESH_MS);
