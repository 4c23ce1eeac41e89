/** Asks for an API key where the server wants one. */

import { key, onUnauthorized } from "./api.js";
import { byId, say } from "./dom.js";

/** @param {import("./server.js").Server} server @param {() => void} opened called when a key was accepted */
export function door(server, opened) {
  const form = byId("door");
  let tried = false;
  onUnauthorized((refusal) => {
    say(byId("door-error"), tried || key.get() ? `${refusal.message} Check it, or ask whoever runs this server for one.` : "");
    key.forget();
    server.soon();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = byId("key").value.trim();
    if (!given) return;
    if (!/^[!-~]+$/.test(given)) {
      say(byId("door-error"), "A key has no spaces and no letters beyond ASCII. Check what was pasted.");
      return;
    }
    tried = true;
    say(byId("door-error"), "");
    key.set(given);
    server.soon();
  });
  byId("forget").addEventListener("click", () => {
    key.forget();
    tried = false;
    byId("key").value = "";
    server.soon();
  });
  let open = false;
  server.addEventListener("change", () => {
    const locked = server.state === "locked";
    form.hidden = !locked;
    byId("form").hidden = locked;
    byId("forget").hidden = !server.keys || !key.get();
    if (!locked && server.state !== "away" && server.keys && !open) {
      open = true;
      byId("key").value = "";
      opened();
    }
    if (locked) open = false;
  });
}
