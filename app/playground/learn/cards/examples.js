/** Card 1: pictures of the training set next to pictures that the model makes. */

import { el } from "../../shared/dom.js";
import { randomSeed } from "../math/random.js";
import { actionButton } from "../parts/action.js";
import { choice, row, status } from "../parts/controls.js";
import { decode, frame, strip } from "../parts/pictures.js";
import { trainingPictures } from "../parts/training.js";

const COUNT = 8;

export function mount(stage, { network, signal, done }) {
  const { card, subjects } = network;
  const size = Math.max(card.width, card.height);
  const count = Math.min(COUNT, card.max_images);
  const frames = (name) => Array.from({ length: count }, (_, k) => frame(`${name} ${k + 1}`, { caption: "", size }));
  const [learned, made] = [frames("Example"), frames("Made")];
  const { element, say } = status();
  const kinds = subjects.slice(0, 12);
  let training = [];

  const subject = choice({ label: card.labels.length ? "Kind" : "Prompt", options: kinds.map((each) => [each, each]), value: kinds[0] ?? "", onchange: () => showExamples() });
  const examples = el("div", {}, el("h3", {}, "Examples"), strip(learned, 16));
  const showExamples = () => {
    const pictures = training[subjects.indexOf(subject.value)];
    examples.hidden = !pictures;
    pictures?.slice(0, count).forEach((each, k) => learned[k].show(each));
    made.forEach((each) => each.canvas.getContext("2d")?.clearRect(0, 0, size, size));
    say("");
  };

  const make = actionButton(`Make ${count} new ones`, async () => {
    const chosen = kinds.length ? subject.value : null;
    say("The noise of eight seeds is becoming pictures …");
    const run = await network.run({ ...network.asked(chosen), n: count, seed: randomSeed(), preview_every: 2, preview: "x0" }, {
      signal,
      onEvent: async (event, running) => {
        if (event.type !== "frame") return;
        const file = running.file("x0", event.step, event.image);
        if (file && !signal.aborted) made[event.image].show(await decode(file, card.channels));
      },
    });
    const pictures = await network.finished(run);
    pictures.forEach((each, k) => made[k].show(each));
    say(`Made ${pictures.length} in ${run.job.timing.running.toFixed(1)} s. Press again for others.`, "good");
    done();
  }, { say, signal });

  stage.append(kinds.length ? subject.element : "", examples, el("div", {}, el("h3", {}, "Made just now"), strip(made, 8)), row(make), element);
  if (card.data) stage.append(el("p", { class: "hint" }, `Examples: ${card.data}.`));
  trainingPictures(card).then((pictures) => { training = pictures; showExamples(); }, (error) => say(error.message, "bad"));
}
