/** docs/how-it-works.md as a page: the text to the cards. */

import { request } from "../shared/api.js";
import { byId, setText } from "../shared/dom.js";
import { markdown } from "./markdown.js";

async function load() {
  try {
    byId("text").replaceChildren(...markdown(await (await request("/playground/learn/how-it-works.md")).text()).slice(1));
    document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  } catch (error) {
    byId("banner").hidden = false;
    setText(byId("banner"), error.message);
  }
}

load();
