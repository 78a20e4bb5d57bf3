/** Light, dark, or as the system has it. */

import { make } from "./elements.js";

const KEY = "paligemma-edge-theme";
const NEXT = { system: "light", light: "dark", dark: "system" };

/** Makes a button that goes through the three. */
export function themeButton(button) {
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.replaceChildren(make("span", { class: "wide" }, "Theme: "), theme);
  };
  show(stored());
  button.addEventListener("click", () => {
    const theme = NEXT[document.documentElement.dataset.theme];
    localStorage.setItem(KEY, theme);
    show(theme);
  });
}

function stored() {
  const theme = localStorage.getItem(KEY);
  return theme in NEXT ? theme : "system";
}
