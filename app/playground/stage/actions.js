/** The actions on a job: a row of buttons in the viewer, a menu in the gallery. */

import { announce, byId, el, menu } from "../shared/dom.js";
import { picture, save } from "../shared/pictures.js";
import * as storage from "../shared/storage.js";
import { request, sleep, verify } from "../shared/api.js";
import { curl, fileName, python } from "./snippets.js";
import { titleOf, verificationText } from "../shared/text.js";

const ANIMATIONS = [["WebP", "webp"], ["GIF", "gif"], ["APNG", "apng"]];
const VARIATIONS = 9; // pictures: a square with the chosen seed in the middle
const MAX_SEED = Number.MAX_SAFE_INTEGER;

/** What each action does. */
export class JobActions {
  /** @param {{jobs: any, form: any, server: any}} page */
  constructor({ jobs, form, server }) {
    Object.assign(this, { jobs, form, server });
  }

  download = (entry) => this.#reportErrors(entry, async () => {
    for (const image of entry.job.images) {
      save(await picture(image), fileName(entry.job, image.index));
      await sleep(entry.job.images.length > 1 ? 200 : 0); // browsers drop downloads that start together
    }
  });

  /** All pictures of a job in one file. */
  grid = (entry) => this.#reportErrors(entry, async () => {
    const { gridOf } = await import("./grid.js");
    const { job } = entry;
    save(await gridOf(await Promise.all(job.images.map(picture))), fileName(job, 0, "png").replace(/-\d+\.png$/, `-${job.seed}-to-${job.seed + job.n - 1}.png`));
  });

  /** Open a picture in a dialog, in comparison with the one that the job started from. */
  enlarge = (entry, index = 0) => this.#reportErrors(entry, async () => {
    const { Enlarged } = await import("./enlarged.js");
    new Enlarged(entry, this).show(index);
  });

  /** Run the seed of a job over steps, guidance or samplers. @param {"steps" | "guidance" | "samplers"} axis */
  compare = (entry, axis) => this.#reportErrors(entry, async () => {
    const { Strip } = await import("./strip.js");
    this.strip ??= new Strip(byId("strip"), this);
    await this.strip.compare(entry.job, axis);
  });

  /** Show the comparison that this tab showed before a reload. */
  async restoreComparison() {
    const stored = storage.loadStrip();
    if (!stored?.panels?.some(({ id }) => this.jobs.get(id))) return;
    const { Strip } = await import("./strip.js");
    this.strip ??= new Strip(byId("strip"), this);
    this.strip.restore(stored);
  }

  /** The comparisons that make sense for a job, as [text, axis] pairs; none while its model is not served. */
  comparisons({ job }) {
    const card = this.server.models.find((model) => model.name === job.model);
    const guided = (job.label !== null || job.prompt) && (card?.guidance_embedded || card?.unconditional);
    return card ? [["Steps", "steps"], ...(guided ? [["Guidance", "guidance"]] : []), ["Samplers", "samplers"]] : [];
  }

  /** Offer a picture as the start of the next job. */
  startFrom = (entry, index = 0) => this.#reportErrors(entry, async () => {
    const image = entry.job.images[index];
    await this.form.picture.choose(await picture(image), `${titleOf(entry.job)}, seed ${image.seed}`);
    byId("image-field").scrollIntoView({ block: "nearest" });
    announce("Start picture chosen");
  });

  animation = (entry, format) => this.#reportErrors(entry, async () => {
    const response = await request(`/jobs/${entry.job.id}/animation?format=${format}`, { timeout: 60_000 });
    save(await response.blob(), fileName(entry.job, 0, format === "apng" ? "apng" : format));
  });

  copy = (entry, language) => this.#reportErrors(entry, async () => {
    const text = (language === "curl" ? curl : python)(entry.job, Object.keys(this.server.requestSchema), location.origin, this.server.needsKey);
    if (await copyToClipboard(text)) this.jobs.setNote(entry, "plain", language === "curl" ? "Copied the curl command to the clipboard." : "Copied the Python program to the clipboard.");
  });

  repeat = (entry) => {
    this.form.load(entry.job);
    this.form.generate();
  };

  /** The same request with neighboring seeds. */
  vary = (entry) => {
    const n = Math.min(VARIATIONS, this.form.card?.max_images ?? VARIATIONS);
    const seed = Math.max(0, Math.min(entry.job.seed - Math.floor(n / 2), MAX_SEED - n));
    this.form.load({ ...entry.job, seed, n });
    this.form.generate();
  };

  verify = (entry) => this.#reportErrors(entry, async () => {
    const { images } = entry.job;
    const outcomes = [];
    for (const image of images) {
      const counter = images.length > 1 ? ` (${outcomes.length + 1} of ${images.length})` : "";
      this.jobs.setNote(entry, "plain", `The server is making the picture again from the file and comparing the bytes${counter} …`);
      outcomes.push(await verify(await picture(image)));
    }
    this.jobs.setNote(entry, outcomes.every((outcome) => outcome.match) ? "good" : "bad", verificationText(outcomes));
  });

  async #reportErrors(entry, action) {
    try {
      await action();
    } catch (error) {
      this.jobs.setError(entry, error);
    }
  }
}

/** The buttons of one entry. They are rebuilt only when the possible actions change, so that the focus stays. */
export class ActionBar {
  #shownKey = "";

  constructor(container, actions) {
    this.container = container;
    this.actions = actions;
  }

  show(entry) {
    this.container.classList.toggle("reserved", Boolean(entry) && !entry.ended); // the place of the buttons, so that nothing moves at the end
    const key = entry ? `${entry.job.id} ${entry.ended && entry.status} ${entry.missing} ${this.actions.form.picture.isTaken}` : "";
    if (key === this.#shownKey) return;
    this.#shownKey = key;
    this.container.replaceChildren(...(key ? this.#buttons(entry) : []));
  }

  #buttons(entry) {
    const { actions } = this;
    const button = (text, action, title) => el("button", { type: "button", title, onclick: () => action(entry) }, text);
    const available = (entry.status === "succeeded" && !entry.missing) || !entry.ended;
    const comparisons = actions.comparisons(entry);
    return [
      available && (entry.job.n > 1
        ? menu("Download", [["One grid", () => actions.grid(entry)], ["Each picture", () => actions.download(entry)]])
        : button("Download", actions.download, "Save the picture")),
      available && button(entry.job.image ? "Before and after" : "Enlarge", (each) => actions.enlarge(each), "Show one picture large"),
      available && menu("Animation", ANIMATIONS.map(([text, format]) => [text, () => actions.animation(entry, format)])),
      menu("Copy", [["as curl", () => actions.copy(entry, "curl")], ["as Python", () => actions.copy(entry, "python")]]),
      comparisons.length > 0 && menu("Compare", comparisons.map(([text, axis]) => [text, () => actions.compare(entry, axis)])),
      button("Repeat", actions.repeat, "Generate again with this seed"),
      button("Vary", actions.vary, "The same request with neighboring seeds"),
      available && canVerify(entry) && button("Verify", actions.verify, "Make it again and compare every byte"),
      available && actions.form.picture.isTaken && button("Start from it", (each) => actions.startFrom(each), "Use this picture as the start of the next"),
    ].filter(Boolean);
  }
}

/** The same actions as menu items. */
export function menuItems(entry, actions, jobs) {
  const available = entry.status === "succeeded" && !entry.missing;
  const remove = ["Remove from this list", () => jobs.remove(entry)];
  if (!entry.ended) return [["Cancel", () => jobs.cancel(entry)]];
  return [
    ...(available ? [...downloads(entry, actions), ...ANIMATIONS.map(([text, format]) => [`Animation as ${text}`, () => actions.animation(entry, format)]), null] : []),
    ["Copy as curl", () => actions.copy(entry, "curl")],
    ["Copy as Python", () => actions.copy(entry, "python")],
    null,
    ["Repeat with this seed", () => actions.repeat(entry)],
    ["Vary", () => actions.vary(entry)],
    ...(available && canVerify(entry) ? [["Verify", () => actions.verify(entry)]] : []),
    null,
    remove,
  ];
}

const downloads = (entry, actions) => (entry.job.n > 1
  ? [["Download one grid", () => actions.grid(entry)], ["Download each picture", () => actions.download(entry)]]
  : [["Download", () => actions.download(entry)]]);

const canVerify = (entry) => entry.job.format === "png";

/** Copy a text to the clipboard. If the browser forbids that, show the text so that the visitor can copy it. */
async function copyToClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { readonly: true, "aria-label": "Text to copy" });
    area.value = text;
    const dialog = el("dialog", { "aria-label": "Copy this" }, el("p", {}, "This browser does not let this page write to the clipboard. Copy the text yourself."), area, el("form", { method: "dialog" }, el("button", { class: "primary" }, "Close")));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    area.select();
    return false;
  }
}
