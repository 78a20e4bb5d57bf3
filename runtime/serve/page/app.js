/** The page: an image, questions about it, and the answers. Joins the parts; each part knows only itself. */

import { Answer } from "./answer.js";
import { Canvas } from "./canvas.js";
import { Card } from "./card.js";
import { Composer } from "./composer.js";
import { css } from "./colours.js";
import { find, make, tell } from "./elements.js";
import { count, percent, sentence } from "./format.js";
import { askForKey } from "./key_dialog.js";
import { chosenModel, followFacts, showModels } from "./server_facts.js";
import { Shelf } from "./shelf.js";
import { listen } from "./sources.js";
import { say, Sentences } from "./speech.js";
import { themeButton } from "./theme.js";

class App {
  #image = null;
  #card = null; // of the answer whose objects are drawn
  #pinned = null;
  #pointed = null;
  #cards = new Map();
  #shelf = new Shelf(find("answers"), (card) => this.#forget(card));
  #canvas = new Canvas(find("canvas"), find("stage"), {
    onPoint: (number) => this.#point(number),
    onPick: (number) => this.#pick(number),
  });
  #composer = new Composer((asked) => this.#ask(asked));

  start() {
    themeButton(find("theme"));
    listen((image) => this.#take(image));
    find("threshold").addEventListener("input", () => this.#draw());
    window.addEventListener("keydown", (event) => this.#escape(event));
    this.#meetServer();
  }

  async #meetServer() {
    followFacts();
    try {
      await showModels();
    } catch (error) {
      if (error.status === 401) await this.#getKey();
    }
  }

  /** Whether a key was given; then the models are known too, unless it was the wrong one. */
  async #getKey() {
    if (!(await askForKey())) return false;
    try {
      await showModels();
      return true;
    } catch (error) {
      return error.status === 401 ? this.#getKey() : true;
    }
  }

  async #take(promised) {
    try {
      const image = await promised;
      tell(find("trouble"), null);
      this.#show(image);
      this.#composer.suit(image);
      say(`${image.name}, ${image.width} by ${image.height} pixels`);
      if (!matchMedia("(pointer: coarse)").matches) this.#composer.focus();
    } catch (error) {
      tell(find("trouble"), error.message);
    }
  }

  #show(image) {
    this.#image = image;
    find("stage").dataset.view = "image";
    this.#canvas.show(image);
    this.#select(null);
  }

  #ask({ prompt, question }) {
    if (!this.#image) {
      tell(find("trouble"), "An image is needed first: choose a file, or one of the samples.");
      return;
    }
    const model = chosenModel();
    const fields = model ? { ...question.fields, model } : question.fields;
    this.#run(this.#image, { ...question, fields }, prompt);
  }

  async #run(image, question, prompt) {
    const sentences = new Sentences();
    const answer = new Answer(image, question, prompt, () => this.#changed(answer, sentences));
    const card = new Card(answer, {
      select: () => this.#select(card),
      again: () => this.#again(card),
      download: () => this.#canvas.download(),
      point: (number) => this.#point(number),
      pick: (number) => this.#pick(number),
    });
    this.#cards.set(answer, card);
    this.#shelf.put(card);
    this.#select(card);
    reveal(answer.ofObjects ? find("stage") : card.element);
    await answer.run();
    if (card === this.#card && !answer.ofObjects) reveal(card.element);
    if (answer.error?.status === 401 && (await this.#getKey())) this.#again(card);
  }

  #again(card) {
    const { image, question, prompt } = card.answer;
    this.#shelf.remove(card);
    this.#run(image, question, prompt);
  }

  #changed(answer, sentences) {
    const card = this.#cards.get(answer);
    card.update();
    if (!answer.ofObjects) sentences.grow(answer.text);
    if (!answer.running) announce(answer, sentences);
    if (card === this.#card) this.#draw();
  }

  #forget(card) {
    card.answer.stop();
    this.#cards.delete(card.answer);
    if (card === this.#card) this.#select(null);
  }

  #select(card) {
    this.#card?.select(false);
    this.#card = card;
    this.#pinned = null;
    this.#pointed = null;
    if (card && card.answer.image !== this.#image) {
      this.#image = card.answer.image;
      this.#canvas.show(this.#image);
    }
    card?.select(true);
    this.#draw();
  }

  #point(number) {
    if (number === this.#pointed) return;
    this.#pointed = number;
    this.#draw();
  }

  #pick(number) {
    this.#pinned = number === this.#pinned ? null : number;
    this.#draw();
  }

  #draw() {
    const objects = this.#card?.answer.objects ?? [];
    const least = find("threshold").valueAsNumber;
    const visible = objects.filter((object) => object.confidence >= least);
    const active = this.#pointed ?? this.#pinned;
    find("cut").toggleAttribute("data-empty", !objects.length);
    find("threshold-value").value = least.toFixed(2);
    find("marks").replaceChildren(...objects.map((object) => mark(object, least)));
    find("stage").toggleAttribute("data-working", this.#card?.answer.running ?? false);
    this.#card?.show(visible, active);
    this.#canvas.set(visible, visible.some(({ number }) => number === active) ? active : null);
  }

  #escape(event) {
    if (event.key !== "Escape" || find("key-dialog").open) return;
    this.#pinned = null;
    for (const answer of this.#cards.keys()) if (answer.running) answer.stop();
    this.#draw();
  }
}

/** Scrolls as little as shows an element: where the answer comes, which on a phone may be out of sight. */
function reveal(element) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
}

/** A confidence as a tick under the slider. */
function mark({ confidence: value, colour }, least) {
  const tick = make("span", { "data-below": value < least });
  tick.style.setProperty("--at", value);
  tick.style.setProperty("--colour", css(colour));
  return tick;
}

function announce(answer, sentences) {
  if (answer.error) return say(sentence(answer.error.message));
  if (answer.state === "stopped") return say("Stopped");
  if (!answer.ofObjects) return sentences.end(answer.text);
  const found = answer.objects.map(({ label, confidence: value }) => `${label}, ${percent(value)}`);
  return say(found.length ? `${count(found.length, "object")}: ${found.join("; ")}.` : "Nothing found.");
}

new App().start();
