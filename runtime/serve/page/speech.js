/** What a screen reader says while an answer comes: whole sentences, never half words. */

import { find, make } from "./elements.js";

const KEPT = 30;
const SENTENCE = /[^.!?。！？]+[.!?。！？]+(?=\s|$)/gu;

/** Says one sentence, once those before it are said. */
export function say(text) {
  const log = find("speech");
  log.append(make("p", {}, text));
  while (log.children.length > KEPT) log.firstChild.remove();
}

/** A text that grows; each sentence is said as soon as it has ended. */
export class Sentences {
  #said = 0;

  grow(text) {
    const rest = text.slice(this.#said);
    let end = 0;
    for (const sentence of rest.matchAll(SENTENCE)) {
      say(sentence[0].trim());
      end = sentence.index + sentence[0].length;
    }
    this.#said += end;
  }

  end(text) {
    const rest = text.slice(this.#said).trim();
    if (rest) say(rest);
  }
}
