/** The command that asks the same question from a shell. */

import { key, query } from "./api.js";
import { withMasks } from "./prompts.js";

/** A line for a POSIX shell; a sample is fetched from the server, another image is read from its file. */
export function curlLine(image, question) {
  const { path, fields } = withMasks(question, "rle");
  const asked = query(fields);
  const parts = [
    "curl -sS",
    key.get() ? '-H "Authorization: Bearer $PALIGEMMA_API_KEY"' : "",
    `-H ${quoted(`Content-Type: ${image.blob.type}`)}`,
    `--data-binary ${image.url ? "@-" : quoted(`@${image.name}`)}`,
    quoted(new URL(`v1/${path}${asked && `?${asked}`}`, document.baseURI).href),
  ];
  const line = parts.filter(Boolean).join(" ");
  return image.url ? `curl -sS ${quoted(new URL(image.url, document.baseURI).href)} | ${line}` : line;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
