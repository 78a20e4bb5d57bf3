/** The answers, newest first, under the image that they are about. */

import { find, make } from "./elements.js";

const IMAGES = 8; // kept with their answers; a decoded photo takes a hundred megabytes

export class Shelf {
  #groups = new Map(); // by image, oldest first
  #onDrop;

  /** `onDrop(card)` is called for each card that goes with its image. */
  constructor(element, onDrop) {
    this.element = element;
    this.#onDrop = onDrop;
  }

  put(card) {
    find("no-answers").hidden = true;
    const { image } = card.answer;
    if (!this.#groups.has(image)) this.#open(image);
    const group = this.#groups.get(image);
    if (group.section !== this.element.firstElementChild) this.element.prepend(group.section);
    group.cards.unshift(card);
    group.heading.after(card.element);
  }

  remove(card) {
    card.element.remove();
    const { cards } = this.#groups.get(card.answer.image);
    cards.splice(cards.indexOf(card), 1);
    this.#onDrop(card);
  }

  #open(image) {
    const source = URL.createObjectURL(image.blob);
    const size = `${image.name}, ${image.width} × ${image.height}`;
    const heading = make("h2", { class: "about" }, make("img", { src: source, alt: "", width: 28, height: 28 }), size);
    const section = make("section", { class: "group", "aria-label": `About ${image.name}` }, heading);
    this.#groups.set(image, { section, heading, source, cards: [] });
    if (this.#groups.size > IMAGES) this.#close(this.#groups.keys().next().value);
  }

  #close(image) {
    const { section, source, cards } = this.#groups.get(image);
    this.#groups.delete(image);
    section.remove();
    URL.revokeObjectURL(source);
    cards.forEach(this.#onDrop);
  }
}
