/** One question about one image, and its answer as far as it has come. Knows nothing of the page. */

import { ask } from "./api.js";
import { shown, withMask } from "./objects.js";
import { withMasks } from "./prompts.js";

const RUNNING = new Set(["sending", "waiting", "looking", "answering"]);
const OF_OBJECTS = new Set(["detect", "segment"]);

export class Answer {
  #stop = new AbortController();

  /** `question` is `{path, fields}`; `onChange(answer)` is called whenever more is known. */
  constructor(image, question, prompt, onChange) {
    Object.assign(this, { image, question, prompt, onChange });
    this.state = image.id ? "waiting" : "sending";
    this.text = "";
    this.objects = [];
    this.result = null;
    this.error = null;
    this.since = performance.now();
  }

  get running() {
    return RUNNING.has(this.state);
  }

  get ofObjects() {
    if (this.result) return "objects" in this.result;
    return OF_OBJECTS.has(this.question.path) || this.objects.length > 0 || /^\s*(detect|segment)\b/i.test(this.prompt);
  }

  stop() {
    this.#stop.abort();
  }

  /** Asks, and follows the answer to its end; never throws. */
  async run() {
    const question = withMasks(this.question, "png");
    try {
      for await (const { event, data } of ask(this.image, question, this.#stop.signal)) await this.#take(event, data);
      this.#become("done");
    } catch (error) {
      this.error = error.name === "AbortError" ? null : error;
      this.#become(this.error ? "failed" : "stopped");
    }
  }

  async #take(event, data) {
    if (event === "start") this.#become("looking");
    if (event === "token") {
      this.text += data.text;
      this.#become("answering");
    }
    if (event === "object") {
      this.objects = [...this.objects, await withMask(shown(data.object, data.number, this.image))];
      this.#become("answering");
    }
    if (event === "result") await this.#finish(data);
  }

  async #finish(result) {
    this.result = result;
    this.text = result.text;
    const objects = (result.objects ?? []).map((object, number) => shown(object, number, result.image ?? this.image));
    this.objects = await Promise.all(objects.map(withMask));
  }

  #become(state) {
    this.state = state;
    this.onChange(this);
  }
}
