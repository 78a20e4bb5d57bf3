/** The question as it is written: tasks that write a prompt, the prompt, and the choices of `classify`. */

import { find, make } from "./elements.js";
import { endpoint, payloadStart, suggestions, taskOf, TASKS } from "./prompts.js";

export class Composer {
  #drafts = suggestions(null).prompts;
  #buttons = new Map();
  #classifies = false;
  #prompt = find("prompt");
  #choices = find("choices");

  /** `onAsk({prompt, question})` receives what is to be asked. */
  constructor(onAsk) {
    for (const task of TASKS) {
      const onclick = () => this.choose(task.name, true);
      const button = make("button", { type: "button", "aria-pressed": "false", onclick }, task.title);
      this.#buttons.set(task.name, button);
    }
    find("tasks").append(...this.#buttons.values());
    this.#choices.value = suggestions(null).choices;
    this.#prompt.addEventListener("input", () => this.#typed());
    this.#prompt.addEventListener("keydown", (event) => this.#enter(event));
    find("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask(onAsk);
    });
    this.choose("caption");
  }

  /** Prompts that suit a new image; a prompt that its user wrote stays. */
  suit(image) {
    const { prompts, choices } = suggestions(image.questions);
    const task = this.#task;
    this.#drafts = prompts;
    this.#choices.value = choices;
    if (task !== "free") this.choose(task);
  }

  /** Writes a task's prompt; with `edit`, the part to change is selected. */
  choose(task, edit = false) {
    this.#classifies = task === "classify";
    this.#prompt.value = this.#drafts[task];
    this.#show(task);
    if (!edit) return;
    this.#prompt.focus();
    this.#prompt.setSelectionRange(payloadStart(this.#prompt.value), this.#prompt.value.length);
  }

  focus() {
    this.#prompt.focus();
  }

  get #task() {
    return this.#classifies ? "classify" : taskOf(this.#prompt.value);
  }

  #typed() {
    const task = this.#task;
    this.#drafts[task] = this.#prompt.value;
    this.#carry(task);
    this.#show(task);
  }

  /** What is looked for stays the same between `detect` and `segment`. */
  #carry(task) {
    const other = { detect: "segment", segment: "detect" }[task];
    if (other) this.#drafts[other] = this.#prompt.value.replace(/^\s*\w+/, other);
  }

  #show(task) {
    for (const [name, button] of this.#buttons) button.setAttribute("aria-pressed", String(name === task));
    find("choices-field").hidden = !this.#classifies;
    find("prompt-help").textContent = TASKS.find(({ name }) => name === task).help;
  }

  #enter(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    find("composer").requestSubmit();
  }

  #ask(onAsk) {
    const prompt = this.#prompt.value.trim();
    if (!prompt) return this.#prompt.focus();
    if (matchMedia("(pointer: coarse)").matches) this.#prompt.blur(); // its keyboard would hide the answer
    const question = endpoint(prompt, this.#classifies ? this.#choices.value : null);
    return onAsk({ prompt, question });
  }
}
