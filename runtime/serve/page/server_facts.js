/** What the server says of itself: the models to choose from, and the line at the foot of the page. */

import { get, key } from "./api.js";
import { find, make } from "./elements.js";

const EVERY = 4000; // milliseconds

/** Fills the choice of models; the first is the base. */
export async function showModels() {
  const { data } = await get("v1/models");
  const options = data.map(({ id, parent }) => make("option", { value: id }, parent ? `${id} (adapter)` : id));
  find("model").replaceChildren(...options);
  find("model").disabled = options.length < 2;
}

/** The chosen model's name; null while none is known. */
export function chosenModel() {
  return find("model").value && !find("model").disabled ? find("model").value : null;
}

/** Keeps the foot of the page true while the page is looked at. */
export function followFacts() {
  let refused; // the key that was not enough, null for none: it is not tried again
  const look = async () => {
    if (document.visibilityState !== "visible" || refused === key.get()) return;
    const tried = key.get();
    try {
      show(facts(await get("v1/info")));
    } catch (error) {
      if (error.status === 401) refused = tried;
      show([["Server", error.status ? error.message : "does not answer"]]);
    }
  };
  document.addEventListener("visibilitychange", look);
  setInterval(look, EVERY);
  return look();
}

function facts(info) {
  return [
    ["Bundle", `${info.bundle.name} ${String(info.bundle.id).slice(0, 12)}`],
    ["Variant", info.variant],
    ["Device", info.device],
    ["Queue", queue(info)],
    ["Version", info.version],
  ];
}

function queue({ running, waiting, slots }) {
  if (!running && !waiting) return "idle";
  return `${running} of ${slots} answering${waiting ? `, ${waiting} waiting` : ""}`;
}

function show(pairs) {
  const old = [...find("facts").querySelectorAll(".value")].map((element) => element.textContent).join();
  if (old === pairs.map(([, value]) => value).join()) return;
  find("facts").replaceChildren(...pairs.map(fact));
}

function fact([name, value]) {
  return make("li", {}, make("span", { class: "name" }, name), " ", make("span", { class: "value" }, value));
}
