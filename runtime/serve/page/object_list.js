/** The objects of an answer as a list: the canvas in words. One is reached by Tab, the others by arrows. */

import { css } from "./colours.js";
import { make } from "./elements.js";
import { confidence } from "./format.js";
import { whereabouts } from "./objects.js";

const STEPS = { ArrowDown: 1, ArrowUp: -1 };

export class ObjectList {
  #buttons = new Map(); // by the object's number
  #handlers;

  constructor({ point, pick }) {
    this.#handlers = { point, pick };
    this.element = make("ul", { class: "objects", "aria-label": "Objects", onkeydown: (event) => this.#move(event) });
  }

  /** Adds the objects that are not in the list yet. */
  fill(objects) {
    for (const object of objects) {
      if (this.#buttons.has(object.number)) continue;
      const button = this.#row(object);
      this.#buttons.set(object.number, button);
      this.element.append(make("li", {}, button));
    }
    this.#oneTabStop();
  }

  /** Hides what is not visible, and marks the one that is meant. */
  show(visible, active) {
    const numbers = new Set(visible.map(({ number }) => number));
    for (const [number, button] of this.#buttons) {
      button.parentElement.hidden = !numbers.has(number);
      button.toggleAttribute("data-active", number === active);
    }
    this.#oneTabStop();
  }

  focus(number) {
    this.#buttons.get(number)?.focus();
  }

  #row(object) {
    const { number, label, colour, pixels: [x0, y0, x1, y1] } = object;
    const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = css(colour);
    return make(
      "button",
      {
        type: "button",
        tabindex: -1,
        onmouseenter: () => this.#handlers.point(number),
        onmouseleave: () => this.#handlers.point(null),
        onfocus: () => this.#handlers.point(number),
        onblur: () => this.#handlers.point(null),
        onclick: () => this.#handlers.pick(number),
      },
      swatch,
      make("span", { class: "number" }, String(number + 1)),
      make("span", { class: "label" }, label),
      make("span", { class: "unseen" }, `, ${whereabouts(object)}, confidence `),
      make("span", { class: "place", "aria-hidden": "true" }, `${x0}, ${y0} – ${x1}, ${y1}`),
      make("span", { class: "sure" }, confidence(object.confidence)),
    );
  }

  get #reachable() {
    return [...this.#buttons.values()].filter((button) => !button.parentElement.hidden);
  }

  #oneTabStop() {
    const reachable = this.#reachable;
    const current = reachable.find((button) => button === document.activeElement) ?? reachable[0];
    for (const button of this.#buttons.values()) button.tabIndex = button === current ? 0 : -1;
  }

  #move(event) {
    const reachable = this.#reachable;
    const at = reachable.indexOf(document.activeElement);
    const to = { Home: 0, End: reachable.length - 1 }[event.key] ?? at + (STEPS[event.key] ?? NaN);
    if (at < 0 || !reachable[to]) return;
    event.preventDefault();
    reachable[to].focus();
    this.#oneTabStop();
  }
}
