/** An answer's card: what was asked, what came, how long it took, and what to take away from it. */

import { curlLine } from "./curl.js";
import { copy, make } from "./elements.js";
import { confidence, count, sentence } from "./format.js";
import { ObjectList } from "./object_list.js";
import { say } from "./speech.js";
import { timings } from "./timings.js";

const DOING = {
  sending: "Sending the image",
  waiting: "Waiting for a turn",
  looking: "Looking at the image",
  answering: "Answering",
};

export class Card {
  #body = make("div", { class: "body" });
  #foot = make("div", { class: "foot" });
  #summary = make("span", { class: "summary" });
  #status = make("span", { class: "elapsed" });
  #list;
  #handlers;
  #clock;

  /** `handlers`: `select()`, `again()`, `download()`, `point(number)` and `pick(number)`. */
  constructor(answer, handlers) {
    this.answer = answer;
    this.#handlers = handlers;
    this.#list = new ObjectList(handlers);
    this.element = make("article", { class: "card" }, this.#head(), this.#body, this.#foot);
    this.#clock = setInterval(() => this.#tick(), 100);
    this.update();
  }

  /** Shows the answer as it is by now. */
  update() {
    const { answer } = this;
    this.element.dataset.state = answer.state;
    this.element.setAttribute("aria-busy", String(answer.running));
    this.#summary.textContent = this.#summaryText();
    if (!answer.running) clearInterval(this.#clock);
    this.#tick();
    this.#fillBody(this.#parts());
    this.#foot.replaceChildren(...this.#ending());
  }

  /** Opens or closes the card. */
  select(selected) {
    this.element.toggleAttribute("data-selected", selected);
    this.element.querySelector(".title").setAttribute("aria-pressed", String(selected));
  }

  /** Which objects are above the slider, and which one is meant. */
  show(visible, active) {
    this.#list.show(visible, active);
    this.#summary.textContent = this.#summaryText(visible.length);
  }

  focusObject(number) {
    this.#list.focus(number);
  }

  #head() {
    const title = make(
      "button",
      { type: "button", class: "title", "aria-pressed": "false", onclick: this.#handlers.select },
      make("span", { class: "asked" }, this.answer.prompt),
      this.#summary,
    );
    return make("div", { class: "head" }, make("h3", {}, title), this.#status);
  }

  #tick() {
    const { answer } = this;
    if (answer.running) {
      const elapsed = ((performance.now() - answer.since) / 1000).toFixed(1);
      this.#status.textContent = `${DOING[answer.state]} · ${elapsed} s`;
    } else {
      this.#status.textContent = answer.state === "stopped" ? "Stopped" : "";
    }
  }

  #summaryText(visible = this.answer.objects.length) {
    const { answer } = this;
    if (!answer.ofObjects || answer.state === "failed") return "";
    const all = answer.objects.length;
    if (!all) return "";
    return visible === all ? count(all, "object") : `${visible} of ${count(all, "object")}`;
  }

  #parts() {
    const { answer } = this;
    if (answer.error) return [this.#trouble(answer.error)];
    if (answer.result?.probabilities) return [choices(answer.result)];
    if (answer.ofObjects) {
      this.#list.fill(answer.objects);
      return answer.objects.length ? [this.#list.element] : [nothing(answer)];
    }
    return [words(answer)];
  }

  #trouble(error) {
    const wait = error.retryAfter ? ` It asks to wait ${count(error.retryAfter, "second")}.` : "";
    return make(
      "div",
      { class: "trouble" },
      make("p", {}, sentence(error.message) + wait),
      make("button", { type: "button", onclick: this.#handlers.again }, "Ask again"),
    );
  }

  /** An element that stays is left in its place: to move it would take the focus from it. */
  #fillBody(parts) {
    const { children } = this.#body;
    const same = parts.length === children.length && parts.every((part, at) => part === children[at]);
    if (!same) this.#body.replaceChildren(...parts);
  }

  #ending() {
    const { answer } = this;
    if (answer.running) return [make("div", { class: "working" }), this.#button("Stop", () => answer.stop())];
    if (!answer.result) return [];
    return [notes(answer.result), timings(answer.result), this.#takeaways()].filter(Boolean);
  }

  #takeaways() {
    const { answer } = this;
    return make(
      "div",
      { class: "takeaways" },
      this.#copier("Copy JSON", () => JSON.stringify(answer.result, null, 2)),
      this.#copier("Copy curl", () => curlLine(answer.image, answer.question)),
      answer.objects.length > 0 && this.#button("Download overlay", this.#handlers.download),
      answer.ofObjects && make("details", {}, make("summary", {}, "Model’s text"), make("code", {}, answer.text)),
    );
  }

  #button(text, onclick) {
    return make("button", { type: "button", class: "quiet", onclick }, text);
  }

  #copier(title, text) {
    return this.#button(title, async ({ currentTarget }) => {
      await copy(text());
      currentTarget.textContent = "Copied";
      say("Copied");
      setTimeout(() => Object.assign(currentTarget, { textContent: title }), 1500);
    });
  }
}

function words({ text, running, result }) {
  const shown = text || (result ? "(an empty answer)" : "");
  return make("p", { class: "words", "data-growing": running }, shown, sureness(result));
}

function nothing({ running, result }) {
  return make("p", { class: "faint" }, running ? "" : "The model names no such thing in this image.", sureness(result));
}

function sureness(result) {
  if (!result) return null;
  const name = make("span", { class: "unseen" }, "confidence ");
  return make("span", { class: "sure" }, name, confidence(result.confidence));
}

function choices({ probabilities }) {
  const ranked = Object.entries(probabilities).toSorted(([, one], [, other]) => other - one);
  return make("ol", { class: "ranking" }, ...ranked.map(([choice, value]) => rankedChoice(choice, value)));
}

function rankedChoice(choice, value) {
  const bar = make("span", { class: "bar", "aria-hidden": "true" });
  bar.style.setProperty("--share", value);
  const number = make("span", { class: "number" }, confidence(value));
  return make("li", {}, make("span", { class: "choice" }, choice), bar, number);
}

function notes({ notes: said = [], finish_reason: reason }) {
  const cut = reason === "length" ? ["The answer was cut at the limit of tokens."] : [];
  const lines = [...cut, ...said];
  return lines.length ? make("ul", { class: "notes" }, ...lines.map((line) => make("li", {}, sentence(line)))) : null;
}
