/** Numbers and counts as people read them. */

export function duration(seconds) {
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)} ms`;
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

/** A confidence, cut and not rounded: what reads 0.50 is at least 0.50, and only what is certain reads 1.00. */
export function confidence(value) {
  return (Math.floor(value * 100 + 1e-9) / 100).toFixed(2);
}

/** A message as a sentence: the server's begin in lower case and end without a full stop. */
export function sentence(text) {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(capital) ? capital : `${capital}.`;
}

export function percent(value) {
  return `${Math.round(value * 100)} percent`;
}
