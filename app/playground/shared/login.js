/** The form that asks for an API key if the server needs one. */

import { key, onUnauthorized } from "./api.js";
import { byId, setText } from "./dom.js";

/** @param {import("./server.js").Server} server @param {() => void} onAccepted called when the server has accepted a key */
export function setUpLogin(server, onAccepted) {
  const form = byId("login");
  let tried = false;
  onUnauthorized((error) => {
    setText(byId("login-error"), tried || key.get() ? `${error.message} Check it, or ask the server's operator for one.` : "");
    key.clear();
    server.checkNow();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const entered = byId("key").value.trim();
    if (!entered) return;
    if (!/^[!-~]+$/.test(entered)) {
      setText(byId("login-error"), "A key contains only ASCII characters and no spaces. Check what you pasted.");
      return;
    }
    tried = true;
    setText(byId("login-error"), "");
    key.set(entered);
    server.checkNow();
  });
  byId("remove-key").addEventListener("click", () => {
    key.clear();
    tried = false;
    byId("key").value = "";
    server.checkNow();
  });
  let accepted = false;
  server.addEventListener("change", () => {
    const locked = server.state === "locked";
    form.hidden = !locked;
    byId("form").hidden = locked;
    byId("remove-key").hidden = !server.needsKey || !key.get();
    if (!locked && server.state !== "unreachable" && server.needsKey && !accepted) {
      accepted = true;
      byId("key").value = "";
      onAccepted();
    }
    if (locked) accepted = false;
  });
}
