/** What a card says of a model that it cannot show, and a button for one that it can. */

import { byId, el } from "../../shared/dom.js";
import { button } from "./controls.js";

/** @param {string} reason @param {{server: {models: any[]}}} network @param {(card: any) => boolean} fits whether a model can be shown */
export function otherModel(reason, { server }, fits) {
  const other = server.models.find(fits);
  const change = () => {
    byId("model").value = other.name;
    byId("model").dispatchEvent(new Event("change"));
  };
  return el("div", { class: "waiting" }, el("p", { class: "hint" }, reason), other ? button(`Show it with ${other.name}`, change) : null);
}

/** Whether a model denoises pixels, so that its noise and its score are pictures. */
export const isOfPixels = (card) => !card.latent;
