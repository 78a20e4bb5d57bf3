/** Elements of the page, made and found. Text is only ever set as text. */

export function find(id) {
  return document.getElementById(id);
}

/** An element with attributes, listeners (`onclick`) and children: elements or texts. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Shows a trouble in words, or hides it when there is none. */
export function tell(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

/** Copies a text; also where the page is not on a secure origin. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { class: "unseen", readonly: true });
  area.value = text;
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
  return undefined;
}
