/** Where images come from: a file, a drop, the clipboard, the camera, the samples. */

import { find, make, tell } from "./elements.js";

const JPEG_QUALITY = 0.92;
const CAMERA = { video: { facingMode: "environment", width: { ideal: 1920 } } };

/** An image of encoded bytes; an error in words where this browser cannot show it. */
export async function decoded(blob, name, more = {}) {
  if (!blob.type.startsWith("image/")) throw new Error(`${name} is not an image.`);
  const bitmap = await createImageBitmap(blob).catch(() => {
    throw new Error(`${name} cannot be read as an image here. PNG, JPEG and WebP are sure to work.`);
  });
  return { blob, name, bitmap, width: bitmap.width, height: bitmap.height, id: null, ...more };
}

/** Listens for images of all kinds; `take(promise of an image)` receives each. */
export function listen(take) {
  const camera = new Camera(find("stage"), find("viewfinder"));
  const takeIt = (image) => {
    camera.close();
    return take(image);
  };
  files(takeIt);
  drops(takeIt);
  cameraButtons(camera, takeIt);
  samples(takeIt);
}

function files(take) {
  const input = find("file");
  input.addEventListener("change", () => {
    if (input.files[0]) take(decoded(input.files[0], input.files[0].name));
    input.value = "";
  });
  window.addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (!file) return;
    event.preventDefault();
    take(decoded(file, file.name || "pasted.png"));
  });
}

function drops(take) {
  const stage = find("stage");
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    stage.toggleAttribute("data-drop", depth > 0);
  };
  window.addEventListener("dragenter", () => mark(1));
  window.addEventListener("dragleave", () => mark(-1));
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    const file = event.dataTransfer?.files[0];
    take(file ? decoded(file, file.name) : Promise.reject(new Error("What was dropped is not an image file.")));
  });
}

/** The camera's buttons; where there is no camera to use, the first one says why. */
function cameraButtons(camera, take) {
  const button = find("camera");
  const reason = unavailable();
  if (reason) {
    button.setAttribute("aria-disabled", "true");
    button.setAttribute("aria-describedby", "camera-reason");
    tell(find("camera-reason"), reason);
    return;
  }
  button.addEventListener("click", async () => tell(find("camera-reason"), await camera.open()));
  find("camera-off").addEventListener("click", () => camera.close());
  find("shutter").addEventListener("click", () => take(camera.still()));
}

function unavailable() {
  if (!window.isSecureContext) return "The camera needs HTTPS or localhost: browsers give it to no other page.";
  return navigator.mediaDevices?.getUserMedia ? null : "This browser gives pages no camera.";
}

/** The camera, seen in the place of the image while it is open. */
class Camera {
  #stage;
  #video;
  #stream = null;
  #before = null; // what the stage showed

  constructor(stage, video) {
    this.#stage = stage;
    this.#video = video;
  }

  /** Opens it; the reason in words where it does not open. */
  async open() {
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia(CAMERA);
    } catch (error) {
      return refusal(error);
    }
    this.#video.srcObject = this.#stream;
    await this.#video.play();
    this.#before = this.#stage.dataset.view;
    this.#stage.dataset.view = "camera";
    this.#buttons(true);
    find("shutter").focus();
    return null;
  }

  close() {
    if (!this.#stream) return;
    this.#stream.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.#video.srcObject = null;
    this.#stage.dataset.view = this.#before;
    this.#buttons(false);
    find("camera").focus();
  }

  /** What it sees now, as an image. */
  async still() {
    const canvas = new OffscreenCanvas(this.#video.videoWidth, this.#video.videoHeight);
    canvas.getContext("2d").drawImage(this.#video, 0, 0);
    return decoded(await canvas.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY }), "camera.jpg");
  }

  #buttons(open) {
    find("camera").hidden = open;
    find("shutter").hidden = !open;
    find("camera-off").hidden = !open;
  }
}

function refusal(error) {
  if (error.name === "NotAllowedError") return "The camera was refused; the browser's settings for this page can allow it.";
  if (error.name === "NotFoundError") return "No camera is connected.";
  return "The camera did not start. Another program may be using it.";
}

async function samples(take) {
  const response = await fetch("samples/prompts.json").catch(() => null);
  if (!response?.ok) return;
  const entries = await response.json();
  find("samples").append(...entries.map((entry) => thumbnail(entry, take)));
  find("samples").hidden = false;
  const toggle = find("samples-toggle"); // where there is little room the samples wait behind it
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const open = find("samples").toggleAttribute("data-open");
    toggle.setAttribute("aria-expanded", String(open));
  });
}

function thumbnail({ image, questions }, take) {
  const url = `samples/${image}`;
  const shows = questions.find(({ task }) => task === "caption")?.text ?? image;
  const fetched = async () => decoded(await (await fetch(url)).blob(), image, { url, questions });
  let sample = null; // once chosen it stays the same image: its questions stay together
  return make(
    "button",
    { type: "button", class: "sample", onclick: () => take((sample ??= fetched())) },
    make("img", { src: url, alt: `Sample: ${shows}`, width: 56, height: 56, loading: "lazy" }),
  );
}
