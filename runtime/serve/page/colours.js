/** The colour of a label: the one that `draw` of the Python package gives it. */

const PALETTE = [
  [230, 25, 75],
  [60, 180, 75],
  [255, 215, 25],
  [30, 110, 240],
  [245, 130, 48],
  [145, 50, 200],
  [70, 215, 235],
  [240, 80, 230],
  [190, 235, 60],
  [0, 128, 128],
  [160, 95, 30],
  [250, 170, 190],
];
const POLYNOMIAL = 0xedb88320;

/** Red, green and blue 0..255 of a label. */
export function colourOf(label) {
  const folded = label.trim().toUpperCase().toLowerCase(); // as Python's casefold: ß is ss
  const name = new TextEncoder().encode(folded);
  return PALETTE[crc32(name) % PALETTE.length];
}

/** A colour as CSS writes it. */
export function css([red, green, blue], opacity = 1) {
  return `rgb(${red} ${green} ${blue} / ${opacity})`;
}

/** Black or white, whichever has more contrast on a colour, as WCAG 2 defines it. */
export function textOn(colour) {
  const light = luminance(colour);
  return (light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? "#000" : "#fff";
}

function luminance(colour) {
  const [red, green, blue] = colour.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function crc32(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit += 1) sum = (sum >>> 1) ^ (sum & 1 ? POLYNOMIAL : 0);
  }
  return (sum ^ 0xffffffff) >>> 0;
}
