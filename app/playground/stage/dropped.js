/** A picture that is dropped on the page: the start of the next job, or, if it carries its request, made again and verified. */

import { json, verify } from "../shared/api.js";
import { announce, byId, setText } from "../shared/dom.js";
import { verificationText } from "../shared/text.js";

const HEAD = 8; // bytes of a PNG before its first chunk
const KEYWORD = "parameters"; // of the text that holds the request

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
    setText(byId("form-error"), "");
    try {
      await (await carriesRequest(file) ? restore(file) : start(file));
    } catch (error) {
      setText(byId("form-error"), `${file.name}: ${error.message}`);
    }
  });

  async function restore(file) {
    const outcome = await verify(file);
    form.load({ label: null, prompt: null, n: 1, ...outcome.request });
    const entry = jobs.adopt(await json(`/jobs/${outcome.job}`));
    choose(entry);
    jobs.setNote(entry, outcome.match ? "good" : "bad", verificationText([outcome]));
  }

  async function start(file) {
    if (file.type.startsWith("image/") && !form.picture.isTaken) throw new Error("The selected model does not start from pictures, and this file carries no request.");
    await form.picture.choose(file);
    byId("image-field").scrollIntoView({ block: "nearest" });
    announce("Start picture chosen");
  }
}

/** Whether a file is a PNG with the request that made it. */
async function carriesRequest(file) {
  if (file.type !== "image/png") return false;
  const view = new DataView(await file.arrayBuffer());
  const text = (at, length) => String.fromCharCode(...new Uint8Array(view.buffer, at, Math.min(length, view.byteLength - at)));
  for (let at = HEAD; at + 12 <= view.byteLength; at += 12 + view.getUint32(at)) {
    if (text(at + 4, 4) === "iTXt" && text(at + 8, KEYWORD.length + 1) === `${KEYWORD}\0`) return true;
  }
  return false;
}
