/** Card 11: the running batch as lanes, and the same bytes alone and in the crowd. */

import { el, setText } from "../../shared/dom.js";
import { randomSeed } from "../math/random.js";
import { actionButton } from "../parts/action.js";
import { row, status } from "../parts/controls.js";
import { decode, frame, strip } from "../parts/pictures.js";
import { picture as pictureFile } from "../../shared/pictures.js";

const MINE = { steps: 40 };
const CROWD = [
  { steps: 20, sampler: "euler_a" }, { steps: 90, sampler: "ddim" }, { steps: 25, sampler: "heun" },
  { steps: 60, sampler: "dpmpp_2m" }, { steps: 120, sampler: "ddpm" },
];
const HEAD_START = 250; // ms that the crowd is ahead

export function mount(stage, { network, signal, done }) {
  const { card, subjects } = network;
  const { element, say } = status("First alone, then among five other jobs that start at other times and use other samplers.");
  const [alone, among] = [frame("Made alone", { caption: "alone" }), frame("Made in the crowd", { caption: "in the crowd" })];
  const lanes = el("div", { class: "lanes", role: "group", "aria-label": "Jobs in the running batch" });
  const bytes = el("div", { class: "bytes" });
  const any = () => subjects[Math.floor(Math.random() * subjects.length)] ?? null;

  function lane(name, { steps }, mine) {
    const fill = el("span", { class: "fill" });
    const count = el("span", { class: "count" }, `0/${steps}`);
    lanes.append(el("div", { class: "lane", "data-mine": String(mine) }, el("span", {}, name), el("span", { class: "rail", "aria-hidden": "true" }, fill), count));
    return (event) => {
      const step = event.type === "progress" ? event.step : event.type === "succeeded" ? steps : null;
      if (step === null) return;
      fill.style.transform = `scaleX(${step / steps})`;
      setText(count, `${step}/${steps}`);
    };
  }

  const start = (name, body, mine) => network.run({ n: 1, preview_every: 0, ...body }, { signal, onEvent: lane(name, body, mine) });

  async function show(run, place) {
    const [image] = run.job.images;
    place.show(await decode(await pictureFile(image), card.channels));
    bytes.append(el("p", {}, `${place === alone ? "Alone" : "In the crowd"}, ${run.job.timing.mean_batch.toFixed(1)} rows per evaluation: `, el("code", {}, `sha256 ${image.sha256}`)));
    return image.sha256;
  }

  const go = actionButton("Make it twice", async () => {
    lanes.replaceChildren();
    bytes.replaceChildren();
    const request = { ...MINE, ...network.asked(any()), seed: randomSeed() };
    say("Alone …");
    const first = await show(await start("mine, alone", request, true), alone);
    lanes.replaceChildren();
    say("Now in the crowd: each lane advances one step of its own with each evaluation …");
    const others = CROWD.filter(({ sampler }) => card.samplers.includes(sampler)).map((body) => start(`${body.sampler}, ${body.steps}`, { ...body, ...network.asked(any()), seed: randomSeed() }, false));
    await new Promise((resolve) => setTimeout(resolve, HEAD_START));
    const second = await show(await start("mine", request, true), among);
    await Promise.all(others);
    say(first === second ? "The same bytes: all 64 digits of the fingerprints agree." : "The bytes differ. Please report this with both requests.", first === second ? "good" : "bad");
    done();
  }, { say, signal });

  stage.append(row(go), lanes, strip([alone, among]), bytes, element);
}
