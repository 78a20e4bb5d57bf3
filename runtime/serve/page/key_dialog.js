/** Asks for the API key of a server that wants one. */

import { key } from "./api.js";
import { find } from "./elements.js";

let asking = null; // one dialog, however many requests were refused

/** A promise of true once a key was given, of false where it was not. */
export function askForKey() {
  asking ??= opened().finally(() => {
    asking = null;
  });
  return asking;
}

function opened() {
  const dialog = find("key-dialog");
  find("key-trouble").hidden = !key.get();
  find("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = new AbortController();
    const given = () => {
      key.set(find("key").value.trim());
      dialog.close("given");
    };
    find("key-form").addEventListener("submit", given, { signal: done.signal });
    find("key-cancel").addEventListener("click", () => dialog.close(), { signal: done.signal });
    dialog.addEventListener("close", () => {
      done.abort();
      resolve(dialog.returnValue === "given");
    }, { signal: done.signal });
  });
}
