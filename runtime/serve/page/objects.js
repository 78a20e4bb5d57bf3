/** Objects of an answer as they are shown: numbered, with corners in order and a mask in their label's colour. */

import { colourOf } from "./colours.js";

const MASK_OPACITY = 0.5;

/** An object of the API's, number 0 first, as the page shows it; its mask follows by `withMask`. */
export function shown(object, number, image) {
  const [x0, y0, x1, y1] = object.xyxy_normalized;
  return {
    number,
    label: object.label || "unnamed",
    confidence: object.confidence,
    pixels: object.xyxy,
    box: [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)],
    colour: colourOf(object.label),
    png: object.mask?.png ?? null,
    maskBox: object.mask?.box ? asShares(object.mask.box, image) : null,
    mask: null,
  };
}

/** The object with its mask as a canvas of its colour, where the API sent one. */
export async function withMask(object) {
  if (!object.png) return object;
  const bytes = Uint8Array.from(atob(object.png), (character) => character.charCodeAt(0));
  const levels = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  return { ...object, mask: tinted(levels, object.colour) };
}

/** Where an object is, in words. */
export function whereabouts({ box: [x0, y0, x1, y1] }) {
  const across = third((x0 + x1) / 2, ["left", "", "right"]);
  const down = third((y0 + y1) / 2, ["upper", "", "lower"]);
  const place = [down, across].filter(Boolean).join(" ") || "middle";
  return `${place}, ${Math.round((x1 - x0) * 100)} by ${Math.round((y1 - y0) * 100)} percent of the image`;
}

function third(share, names) {
  return names[Math.min(Math.floor(share * 3), 2)];
}

function asShares([x0, y0, x1, y1], { width, height }) {
  return [x0 / width, y0 / height, x1 / width, y1 / height];
}

/** A grey image as a colour whose opacity is its level. */
function tinted(levels, [red, green, blue]) {
  const canvas = new OffscreenCanvas(levels.width, levels.height);
  const context = canvas.getContext("2d");
  context.drawImage(levels, 0, 0);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < image.data.length; at += 4) {
    const level = image.data[at];
    image.data.set([red, green, blue, level * MASK_OPACITY], at);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
