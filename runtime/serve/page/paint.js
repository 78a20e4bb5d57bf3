/** Paints an image with masks, boxes and labels, at any size. Knows a 2D context and nothing of the page. */

import { css, textOn } from "./colours.js";
import { confidence } from "./format.js";

const FAMILY = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const FAINT = 0.18; // opacity of what is not meant while one object is
const MOST_HIDDEN = 0.3; // share of a label that another one may cover

/**
 * Paints a view: `{bitmap, objects, active}`, into `size` [width, height] of the context's own units.
 *
 * `unit` is the length of a CSS pixel in those units; lines and letters are measured in it.
 */
export function paint(context, { bitmap, objects, active = null }, size, unit = 1) {
  context.clearRect(0, 0, ...size);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, ...size);
  const ordered = drawingOrder(objects, active).filter(hasArea);
  const strength = (object) => (active === null || object.number === active ? 1 : FAINT);
  for (const object of ordered) faintly(context, strength(object), () => paintMask(context, object, size));
  for (const object of ordered) {
    const line = object.number === active ? 3 : 2;
    faintly(context, strength(object), () => paintBox(context, corners(object.box, size), object.colour, line * unit));
  }
  paintLabels(context, ordered.toReversed(), size, unit, strength);
}

/** The number of the smallest object at a point given in shares of the sides, or null. */
export function objectAt(objects, x, y) {
  const hit = objects.filter(({ box: [x0, y0, x1, y1] }) => x >= x0 && x <= x1 && y >= y0 && y <= y1);
  return hit.toSorted((one, other) => area(one.box) - area(other.box))[0]?.number ?? null;
}

function drawingOrder(objects, active) {
  return objects.toSorted((one, other) => (one.number === active) - (other.number === active));
}

function faintly(context, opacity, draw) {
  context.save();
  context.globalAlpha = opacity;
  draw();
  context.restore();
}

function paintMask(context, { mask, maskBox }, size) {
  if (!mask) return;
  const [x0, y0, x1, y1] = corners(maskBox, size);
  context.drawImage(mask, x0, y0, x1 - x0, y1 - y0);
}

function paintBox(context, [x0, y0, x1, y1], colour, line) {
  const inset = line / 2; // along the inside of the box
  const edge = (width) => {
    context.lineWidth = width;
    context.strokeRect(x0 + inset, y0 + inset, x1 - x0 - line, y1 - y0 - line);
  };
  context.lineJoin = "round";
  context.strokeStyle = textOn(colour) === "#000" ? "rgb(0 0 0 / 0.55)" : "rgb(255 255 255 / 0.75)";
  edge(line * 2);
  context.strokeStyle = css(colour);
  edge(line);
}

function paintLabels(context, objects, size, unit, strength) {
  const style = { pad: 5 * unit, height: 20 * unit };
  context.font = `600 ${12.5 * unit}px ${FAMILY}`;
  context.textBaseline = "middle";
  const taken = [];
  for (const object of objects) {
    const text = fitted(context, object, size[0] - 2 * style.pad);
    const width = context.measureText(text).width + 2 * style.pad;
    const plate = placed(width, style.height, corners(object.box, size), size, taken);
    if (plate) {
      faintly(context, strength(object), () => paintLabel(context, text, plate, object.colour, style));
      taken.push(plate);
    }
  }
}

function paintLabel(context, text, { x, y, width, height }, colour, { pad }) {
  context.fillStyle = css(colour);
  context.beginPath();
  context.roundRect(x, y, width, height, pad / 2);
  context.fill();
  context.fillStyle = textOn(colour);
  context.fillText(text, x + pad, y + height / 2 + pad / 10);
}

/** A label with its number, and its confidence where that fits; cut with dots where it is wider than the image. */
function fitted(context, { number, label, confidence: value }, width) {
  const short = `${number + 1} ${label}`;
  const long = `${short} ${confidence(value)}`;
  if (context.measureText(long).width <= width) return long;
  let kept = short;
  while (kept && context.measureText(`${kept}…`).width > width) kept = kept.slice(0, -1);
  return kept === short ? short : `${kept}…`;
}

/** A place for a label: above its box, else within, else below, where it hides least; null where it hides too much. */
function placed(width, height, [x0, y0, x1, y1], [right, bottom], taken) {
  const inside = (value, most) => Math.max(0, Math.min(value, most));
  const lefts = [x0, x1 - width].map((x) => inside(x, right - width));
  const tops = [y0 - height, y0, y1, y1 - height].filter((y) => y >= 0 && y <= bottom - height);
  const plates = (tops.length ? tops : [0]).flatMap((y) => lefts.map((x) => ({ x, y, width, height })));
  const hidden = (plate) => Math.max(0, ...taken.map((other) => overlap(plate, other)));
  const best = plates.reduce((one, other) => (hidden(other) < hidden(one) ? other : one));
  return hidden(best) <= MOST_HIDDEN ? best : null;
}

function overlap(one, other) {
  const wide = Math.min(one.x + one.width, other.x + other.width) - Math.max(one.x, other.x);
  const high = Math.min(one.y + one.height, other.y + other.height) - Math.max(one.y, other.y);
  return (Math.max(wide, 0) * Math.max(high, 0)) / (one.width * one.height);
}

function corners([x0, y0, x1, y1], [width, height]) {
  return [x0 * width, y0 * height, x1 * width, y1 * height];
}

function area([x0, y0, x1, y1]) {
  return (x1 - x0) * (y1 - y0);
}

function hasArea({ box }) {
  return area(box) > 0;
}
