/** How long an answer took, part by part: a bar for the eye and the same as a list. */

import { make } from "./elements.js";
import { count, duration } from "./format.js";

const LEAST = 0.00005; // seconds; less would read 0.0 ms
const PARTS = ["queue", "preprocess", "vision", "projector", "prefill", "steps"];

/** The bar and its list; what took no time is left out. */
export function timings({ timings: seconds, usage }) {
  const parts = PARTS.filter((part) => seconds[part] >= LEAST).map((part) => [part, seconds[part]]);
  const total = parts.reduce((sum, [, value]) => sum + value, 0);
  const segments = parts.map(([part, value]) => segment(part, value / total));
  const bar = make("div", { class: "timebar", "aria-hidden": "true" }, ...segments);
  const items = parts.map(([part, value]) => item(part, duration(value), part));
  const tokens = usage ? item(null, count(usage.completion_tokens, "token"), null) : null;
  return make("div", { class: "timings" }, bar, make("ul", {}, item("total", duration(total), null), ...items, tokens));
}

function segment(part, value) {
  const element = make("span", { "data-part": part });
  element.style.flexGrow = value;
  return element;
}

function item(name, value, part) {
  const shown = make("span", { class: "value" }, value);
  return make("li", { "data-part": part }, name && make("span", {}, name), " ", shown);
}
