/** What the network is asked about: a picture that it makes itself, or one of the visitor's. */

import { el } from "../../shared/dom.js";
import { randomSeed } from "../math/random.js";
import { pictureChooser } from "./choose-picture.js";
import { choice } from "./controls.js";

const LEVELS = 10; // at which the network is asked about a visitor's picture: an evaluation each
const STEPS = 20; // of a picture that it makes

/** @param {import("./network.js").Network} network */
export function askedPicture(network) {
  let own = /** @type {import("./pictures.js").Picture | null} */ (null);
  const chooser = el("div", { hidden: true });
  const source = choice({ label: "Ask about", options: [["made", "a picture it makes"], ["own", "a picture of yours"]], value: "made", onchange: (value) => {
    chooser.hidden = value !== "own";
    if (!chooser.hidden && !chooser.childElementCount) chooser.append(pictureChooser(network.card, (chosen) => { own = chosen; }));
  } });
  source.element.hidden = !network.readsPictures;
  return {
    element: el("div", { class: "field" }, source.element, chooser),
    get isOwn() { return source.value === "own"; },
    /** What the network predicts at each level, from much noise to little, and the picture below the noise. */
    async predictions({ signal }) {
      if (source.value === "own" && own) return network.noised(own, randomSeed(), LEVELS, { signal });
      const subject = network.subjects[Math.floor(Math.random() * network.subjects.length)] ?? null;
      return network.predictions(subject, randomSeed(), STEPS, { signal });
    },
  };
}
