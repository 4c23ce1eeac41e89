/** Card 9: a film of one job, and comparisons of step counts and samplers from the same noise. */

import { byId, el } from "../../shared/dom.js";
import { randomSeed } from "../math/random.js";
import { actionButton } from "../parts/action.js";
import { comparison } from "../parts/comparison.js";
import { button, choice, row, status } from "../parts/controls.js";
import { filmViewer } from "../parts/film.js";

const STEP_COUNTS = [1, 2, 5, 20];
const SAMPLERS = [["ddpm", 20, "DDPM"], ["ddim", 20, "DDIM"], ["dpmpp_2m", 20, "DPM++ 2M"]];

export function mount(stage, { network, signal, done }) {
  const { subjects } = network;
  const { element, say } = status();
  const seed = randomSeed();
  const first = subjects[Math.floor(Math.random() * subjects.length)] ?? null;
  const prompt = /** @type {HTMLInputElement} */ (el("input", { id: "film-prompt", autocomplete: "off", maxlength: 2000, value: first }));
  const promptField = el("div", { class: "field" }, el("label", { for: "film-prompt" }, "Prompt"), prompt);
  const takesPrompt = network.card.inputs.includes("prompt");
  const subject = () => (takesPrompt ? prompt.value.trim() || null : first);
  const asked = () => ({ ...network.asked(subject()), seed });
  const place = el("div");
  const views = { film: filmView, steps: stepsView, samplers: samplersView };
  const view = choice({ label: "Show", value: "film", onchange: open, options: [["film", "One film"], ["steps", "1, 2, 5, 20 steps"], ["samplers", "Three samplers"]] });
  const go = el("div", { class: "row" });

  function open(name) {
    const { content, text, action } = views[name]();
    place.replaceChildren(content);
    go.replaceChildren(actionButton(text, async () => { await action(); done(); }, { say, signal }));
    say(subject() === null ? `Noise of seed ${seed}.` : `“${subject()}”, from the noise of seed ${seed}.`);
  }

  function filmView() {
    const film = filmViewer(network);
    return { content: film.element, text: "Make the film", action: async () => {
      say("Each step asks the network once …");
      const run = await network.run({ ...asked(), n: 1, steps: 40, sampler: "ddim", preview: film.preview, preview_every: 1 }, { signal, onEvent: film.paintLive });
      await film.load(run);
      say(`${subject() === null ? "" : `“${subject()}”. `}Move the slider: early, the prediction is a blur; later it settles.`, "good");
    } };
  }

  function stepsView() {
    const strips = comparison(network, STEP_COUNTS.map((steps) => ({ caption: steps === 1 ? "1 step" : `${steps} steps`, body: { steps, sampler: "ddim" } })));
    return { content: strips.element, text: "Make all four", action: async () => {
      say("Four jobs from the same noise, in one batch …");
      await strips.run(signal, asked());
      say("One step is the blur of the first answer; with more steps the same noise becomes a clear picture.", "good");
    } };
  }

  function samplersView() {
    const offered = SAMPLERS.filter(([name]) => network.card.samplers.includes(name));
    const strips = comparison(network, offered.map(([sampler, steps, caption]) => ({ caption, body: { sampler, steps } })));
    return { content: strips.element, text: "Make all three", action: async () => {
      say("Three samplers from the same noise …");
      await strips.run(signal, asked());
      say("DDIM and DPM++ go the same way with more or less care; DDPM adds fresh noise and ends elsewhere.", "good");
    } };
  }

  stage.append(view.element, ...(takesPrompt ? [promptField] : []), place, row(go, fromPrompt(network)), element);
  open("film");
}

/** For a model of labels: a button that opens this card with a model of prompts, if one is served. */
function fromPrompt(network) {
  const model = network.server.models.find((each) => each.inputs.includes("prompt"));
  if (!model || network.card.inputs.includes("prompt")) return "";
  return button(`The same from a prompt, with ${model.name}`, () => {
    byId("model").value = model.name;
    byId("model").dispatchEvent(new Event("change"));
  });
}
