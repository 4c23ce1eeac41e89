/** The list of samplers: grouped by what they are good for, with plain names, and one line about the chosen one. */

import { byId, el, setText } from "../shared/dom.js";
import { samplerName } from "../shared/text.js";

const GROUPS = {
  "Few steps": ["dpmpp_2m", "unipc", "dpmpp_3m", "unipc_3", "ddim", "euler", "heun", "dpm_2", "plms", "lms"],
  "Fresh noise in every step": ["dpmpp_2m_sde", "dpmpp_sde", "euler_a", "ddpm"],
  "For distilled models": ["lcm", "tcd"],
  "For studies": ["langevin", "pc"],
};
const MIN_STEPS = { langevin: 100, pc: 100, ddpm: 100 }; // below these, pictures stay noisy

/** Offer the samplers of a model. @param {any} card */
export function offerSamplers(card) {
  const grouped = Object.values(GROUPS).flat();
  const others = card.samplers.filter((name) => !grouped.includes(name));
  const groups = Object.entries(others.length ? { ...GROUPS, Others: others } : GROUPS).map(([label, names]) => [label, names.filter((name) => card.samplers.includes(name))]);
  byId("sampler").replaceChildren(...groups.filter(([, names]) => names.length).map(([label, names]) =>
    el("optgroup", { label }, ...names.map((name) => el("option", { value: name }, nameWithSteps(name, card.sampler_descriptions?.[name] ?? ""))))));
}

/** "DPM++ 2M, good from 15 steps": what its description says, apart from what it says of certain models. */
function nameWithSteps(name, description) {
  const found = description.split(". ").filter((each) => !each.includes("models")).map((each) => /(\d+)(?: to \d+)? steps/.exec(each)?.[1]);
  const steps = MIN_STEPS[name] ?? found.find(Boolean);
  return steps ? `${samplerName(name)}, good from ${steps} steps` : samplerName(name);
}

/** Say what the chosen sampler is good for, and whether the steps are too few for it. @param {any} card @param {number} steps */
export function describeSampler(card, steps) {
  const name = byId("sampler").value;
  setText(byId("sampler-hint"), card.sampler_descriptions?.[name] ?? "");
  const needed = MIN_STEPS[name];
  setText(byId("sampler-warning"), needed && steps < needed ? `${samplerName(name)} needs ${needed} steps or more; with ${steps} the picture stays noisy.` : "");
}
