/** What can be done with a job: as a row of buttons on the stage, as a menu in the gallery. */

import { el, menu } from "./dom.js";
import { picture, save } from "./pictures.js";
import { pause, request, verify } from "./api.js";
import { curl, fileName, python, requestOf } from "./snippets.js";
import { verified } from "./words.js";

const FILMS = [["WebP", "webp"], ["GIF", "gif"], ["APNG", "apng"]];
const AROUND = 9; // pictures of a variation, a square with the seed in its middle
const MAX_SEED = Number.MAX_SAFE_INTEGER;

/** The deeds themselves. */
export class Deeds {
  /** @param {{jobs: any, form: any, server: any}} page */
  constructor({ jobs, form, server }) {
    Object.assign(this, { jobs, form, server });
  }

  download = (entry) => this.#telling(entry, async () => {
    for (const image of entry.job.images) {
      save(await picture(image), fileName(entry.job, image.index));
      await pause(entry.job.images.length > 1 ? 200 : 0); // browsers drop downloads that come at once
    }
  });

  film = (entry, format) => this.#telling(entry, async () => {
    const answer = await request(`/jobs/${entry.job.id}/animation?format=${format}`, { patience: 60_000 });
    save(await answer.blob(), fileName(entry.job, 0, format === "apng" ? "apng" : format));
  });

  copy = (entry, language) => this.#telling(entry, async () => {
    const text = (language === "curl" ? curl : python)(entry.job, location.origin, this.server.keys);
    if (await copied(text)) this.jobs.note(entry, "plain", language === "curl" ? "The curl command is in the clipboard." : "The Python program is in the clipboard.");
  });

  again = (entry) => {
    this.form.take(entry.job);
    this.form.press();
  };

  /** The same request with the seeds around this one. */
  vary = (entry) => {
    const n = Math.min(AROUND, this.form.card?.max_images ?? AROUND);
    const seed = Math.max(0, Math.min(entry.job.seed - Math.floor(n / 2), MAX_SEED - n));
    this.form.take({ ...entry.job, seed, n });
    this.form.press();
  };

  verify = (entry) => this.#telling(entry, async () => {
    const { images } = entry.job;
    const outcomes = [];
    for (const image of images) {
      const place = images.length > 1 ? ` (${outcomes.length + 1} of ${images.length})` : "";
      this.jobs.note(entry, "plain", `The server makes it again from the file itself and compares${place} …`);
      outcomes.push(await verify(await picture(image)));
    }
    this.jobs.note(entry, outcomes.every((outcome) => outcome.match) ? "good" : "bad", verified(outcomes));
  });

  async #telling(entry, deed) {
    try {
      await deed();
    } catch (error) {
      this.jobs.note(entry, "bad", error.message);
    }
  }
}

/** The row of one entry; made anew only when what is possible has changed, so that the focus stays. */
export class Actions {
  #offered = "";

  constructor(place, deeds) {
    this.place = place;
    this.deeds = deeds;
  }

  offer(entry) {
    const key = entry?.over ? `${entry.job.id} ${entry.status} ${entry.gone}` : "";
    if (key === this.#offered) return;
    this.#offered = key;
    this.place.replaceChildren(...(key ? this.#row(entry) : []));
  }

  #row(entry) {
    const { deeds } = this;
    const button = (words, deed, title) => el("button", { type: "button", title, onclick: () => deed(entry) }, words);
    const there = entry.status === "succeeded" && !entry.gone;
    return [
      there && button("Download", deeds.download, "Save the picture"),
      there && menu("Film", FILMS.map(([words, format]) => [words, () => deeds.film(entry, format)])),
      menu("Copy", [["as curl", () => deeds.copy(entry, "curl")], ["as Python", () => deeds.copy(entry, "python")]]),
      button("Again", deeds.again, "Again with this seed"),
      button("Vary", deeds.vary, "The same with neighbouring seeds"),
      there && verifiable(entry) && button("Verify", deeds.verify, "Make it again and compare every byte"),
    ].filter(Boolean);
  }
}

/** The same as a menu's entries. */
export function entriesOf(entry, deeds, jobs) {
  const there = entry.status === "succeeded" && !entry.gone;
  const remove = ["Remove from this list", () => jobs.remove(entry)];
  if (!entry.over) return [["Cancel", () => jobs.cancel(entry)]];
  return [
    ...(there ? [["Download", () => deeds.download(entry)], ...FILMS.map(([words, format]) => [`Film as ${words}`, () => deeds.film(entry, format)]), null] : []),
    ["Copy as curl", () => deeds.copy(entry, "curl")],
    ["Copy as Python", () => deeds.copy(entry, "python")],
    null,
    ["Again with this seed", () => deeds.again(entry)],
    ["Vary", () => deeds.vary(entry)],
    ...(there && verifiable(entry) ? [["Verify", () => deeds.verify(entry)]] : []),
    null,
    remove,
  ];
}

const verifiable = (entry) => requestOf(entry.job).format === "png";

/** Put a text into the clipboard; where the browser forbids that, show it to be copied by hand. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { readonly: true, "aria-label": "To be copied" });
    area.value = text;
    const dialog = el("dialog", { "aria-label": "Copy this" }, el("p", {}, "This browser lets no page write to the clipboard here: copy it by hand."), area, el("form", { method: "dialog" }, el("button", { class: "primary" }, "Close")));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    area.select();
    return false;
  }
}
