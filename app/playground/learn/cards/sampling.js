/** Card 9: a film of one job, and comparisons of step counts and samplers from the same noise. */

import { el } from "../../shared/dom.js";
import { randomSeed } from "../math/random.js";
import { actionButton } from "../parts/action.js";
import { comparison } from "../parts/comparison.js";
import { choice, row, status } from "../parts/controls.js";
import { filmViewer } from "../parts/film.js";

const STEP_COUNTS = [1, 2, 5, 20];
const SAMPLERS = [["ddpm", 20, "DDPM"], ["ddim", 20, "DDIM"], ["dpmpp_2m", 20, "DPM++ 2M"]];

export function mount(stage, { network, signal, done }) {
  const { subjects } = network;
  const { element, say } = status();
  const subject = subjects[Math.floor(Math.random() * subjects.length)] ?? null;
  const seed = randomSeed();
  const asked = { ...network.asked(subject), seed };
  const place = el("div");
  const views = { film: filmView, steps: stepsView, samplers: samplersView };
  const view = choice({ label: "Show", value: "film", onchange: open, options: [["film", "One film"], ["steps", "1, 2, 5, 20 steps"], ["samplers", "Three samplers"]] });
  const go = el("div", { class: "row" });

  function open(name) {
    const { content, text, action } = views[name]();
    place.replaceChildren(content);
    go.replaceChildren(actionButton(text, async () => { await action(); done(); }, { say, signal }));
    say(subject === null ? `Noise of seed ${seed}.` : `“${subject}”, from the noise of seed ${seed}.`);
  }

  function filmView() {
    const film = filmViewer(network);
    return { content: film.element, text: "Make the film", action: async () => {
      say("Each step asks the network once …");
      const run = await network.run({ ...asked, n: 1, steps: 40, sampler: "ddim", preview: "both", preview_every: 1 }, { signal, onEvent: film.paintLive });
      await film.load(run);
      say("Move the slider: early, the prediction is a blur; later it settles.", "good");
    } };
  }

  function stepsView() {
    const strips = comparison(network, STEP_COUNTS.map((steps) => ({ caption: steps === 1 ? "1 step" : `${steps} steps`, body: { ...asked, steps, sampler: "ddim" } })));
    return { content: strips.element, text: "Make all four", action: async () => {
      say("Four jobs from the same noise, in one batch …");
      await strips.run(signal);
      say("One step is the blur of the first answer; with more steps the same noise becomes a clear picture.", "good");
    } };
  }

  function samplersView() {
    const offered = SAMPLERS.filter(([name]) => network.card.samplers.includes(name));
    const strips = comparison(network, offered.map(([sampler, steps, caption]) => ({ caption, body: { ...asked, sampler, steps } })));
    return { content: strips.element, text: "Make all three", action: async () => {
      say("Three samplers from the same noise …");
      await strips.run(signal);
      say("DDIM and DPM++ go the same way with more or less care; DDPM adds fresh noise and ends elsewhere.", "good");
    } };
  }

  stage.append(view.element, place, row(go), element);
  open("film");
}
