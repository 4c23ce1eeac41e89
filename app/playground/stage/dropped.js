/** A PNG that is dropped on the page: its settings come back into the form, and the server verifies it. */

import { json, verify } from "../shared/api.js";
import { byId, setText } from "../shared/dom.js";
import { verificationText } from "../shared/text.js";

/** @param {{jobs: any, form: any, choose: (entry: any) => void}} page */
export function acceptDrops({ jobs, form, choose }) {
  const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    document.body.dataset.drop = "true";
  });
  for (const type of ["dragleave", "drop"]) document.addEventListener(type, () => { delete document.body.dataset.drop; });
  document.addEventListener("drop", async (event) => {
    const [file] = event.dataTransfer?.files ?? [];
    if (!file) return;
    event.preventDefault();
    try {
      await load(file);
    } catch (error) {
      setText(byId("form-error"), `${file.name}: ${error.message}`);
    }
  });

  async function load(file) {
    if (file.type !== "image/png") throw new Error("Only PNG files carry their request.");
    setText(byId("form-error"), "");
    const outcome = await verify(file);
    form.load({ label: null, prompt: null, n: 1, ...outcome.request });
    const entry = jobs.adopt(await json(`/jobs/${outcome.job}`));
    choose(entry);
    jobs.setNote(entry, outcome.match ? "good" : "bad", verificationText([outcome]));
  }
}
