/** The canvas: an image as large as its stage allows, and the objects of one answer over it. */

import { count } from "./format.js";
import { objectAt, paint } from "./paint.js";

const LEAST_DOWNLOAD = 1024; // pixels of the longer side of an overlay: labels on a thumbnail are unreadable

export class Canvas {
  #canvas;
  #stage;
  #image = null;
  #objects = [];
  #active = null;
  #waiting = false;

  /** `onPoint(number)` and `onPick(number)` say which object the pointer is over, and which was pressed. */
  constructor(canvas, stage, { onPoint, onPick }) {
    this.#canvas = canvas;
    this.#stage = stage;
    new ResizeObserver(() => this.#fit()).observe(stage);
    canvas.addEventListener("pointermove", (event) => onPoint(this.#at(event)));
    canvas.addEventListener("pointerleave", () => onPoint(null));
    canvas.addEventListener("click", (event) => onPick(this.#at(event)));
  }

  /** Shows an image without objects. */
  show(image) {
    this.#image = image;
    this.#stage.style.setProperty("--ratio", image.width / image.height);
    this.set([]);
    this.#fit();
  }

  /** The objects to draw, and the number of the one that is meant, if one is. */
  set(objects, active = null) {
    this.#objects = objects;
    this.#active = active;
    this.#canvas.setAttribute("aria-label", this.#description());
    this.#canvas.dataset.objects = objects.length;
    this.#canvas.dataset.active = active ?? "";
    this.#soon();
  }

  /** The image with what is drawn over it, as a PNG. */
  async download() {
    const { width, height, bitmap, name } = this.#image;
    const scale = Math.max(1, LEAST_DOWNLOAD / Math.max(width, height));
    const size = [Math.round(width * scale), Math.round(height * scale)];
    const canvas = new OffscreenCanvas(...size);
    paint(canvas.getContext("2d"), { bitmap, objects: this.#objects }, size, Math.max(...size) / LEAST_DOWNLOAD);
    save(await canvas.convertToBlob({ type: "image/png" }), `${name.replace(/\.[^.]*$/, "")}-overlay.png`);
  }

  #description() {
    if (!this.#image) return "No image yet";
    const found = this.#objects.length;
    return `${this.#image.name}, ${found ? `${count(found, "object")}, listed with the answer` : "no objects drawn"}`;
  }

  #at(event) {
    if (!this.#image) return null;
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    return objectAt(this.#objects, (event.clientX - left) / width, (event.clientY - top) / height);
  }

  #fit() {
    if (!this.#image) return;
    const { width, height } = this.#image;
    const scale = Math.min(this.#stage.clientWidth / width, this.#stage.clientHeight / height);
    this.#canvas.style.width = `${Math.floor(width * scale)}px`;
    this.#canvas.style.height = `${Math.floor(height * scale)}px`;
    this.#soon();
  }

  #soon() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#paint();
    });
  }

  #paint() {
    if (!this.#image) return;
    const ratio = window.devicePixelRatio || 1;
    const size = [this.#canvas.clientWidth * ratio, this.#canvas.clientHeight * ratio].map(Math.round);
    if (!size[0] || !size[1]) return;
    if (this.#canvas.width !== size[0] || this.#canvas.height !== size[1]) {
      [this.#canvas.width, this.#canvas.height] = size;
    }
    const view = { bitmap: this.#image.bitmap, objects: this.#objects, active: this.#active };
    paint(this.#canvas.getContext("2d"), view, size, ratio);
  }
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
