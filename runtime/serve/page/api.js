/** The server's API: questions whose answers stream in, and what the server says of itself. */

const KEY = "paligemma-edge-key";

/** An error that the server told, or that there was no server to tell one (status 0). */
export class ApiError extends Error {
  constructor(status, error = {}, retryAfter = null) {
    super(error.message || `The server answered ${status}.`);
    this.status = status;
    this.code = error.code ?? null;
    this.retryAfter = retryAfter;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** A JSON answer of the server's. */
export async function get(path) {
  const response = await reach(path, { headers: authorization() });
  return response.json();
}

/**
 * Asks about an image and yields the events of the answer, `{event, data}`.
 *
 * The image is sent once and named by its id from then on; where the server no longer has it, it is sent again.
 */
export async function* ask(image, question, signal) {
  const response = await opened(image, question, signal);
  for await (const message of messages(response.body)) {
    if (message.event === "error") throw new ApiError(response.status, message.data.error);
    if (message.event === "start") image.id = message.data.image.id;
    yield message;
    if (message.event === "done") return;
  }
  throw new ApiError(0, { message: "The connection ended before the answer did." });
}

async function opened(image, question, signal) {
  if (image.id) {
    try {
      return await byId(image, question, signal);
    } catch (error) {
      if (error.code !== "image_not_found") throw error;
      image.id = null;
    }
  }
  return byUpload(image, question, signal);
}

function byId(image, { path, fields }, signal) {
  return reach(`v1/${path}`, {
    method: "POST",
    headers: { ...authorization(), "content-type": "application/json" },
    body: JSON.stringify({ image: { id: image.id }, ...fields, stream: true }),
    signal,
  });
}

function byUpload(image, { path, fields }, signal) {
  return reach(`v1/${path}?${query({ ...fields, stream: true })}`, {
    method: "POST",
    headers: { ...authorization(), "content-type": image.blob.type },
    body: image.blob,
    signal,
  });
}

/** Fields as a query; a list repeats its name. */
export function query(fields) {
  const pairs = Object.entries(fields).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  return new URLSearchParams(pairs).toString();
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The server does not answer. Is it still running?" });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ApiError(response.status, body.error, Number(response.headers.get("retry-after")) || null);
}

function authorization() {
  const value = key.get();
  return value ? { authorization: `Bearer ${value}` } : {};
}

/** Server-sent events of a body: https://html.spec.whatwg.org/multipage/server-sent-events.html */
async function* messages(body) {
  let rest = "";
  for await (const piece of pieces(body)) {
    const blocks = (rest + piece).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    yield* blocks.map(message).filter(Boolean);
  }
}

async function* pieces(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The connection was lost while the answer came." });
  } finally {
    reader.cancel().catch(() => {});
  }
}

function message(block) {
  const fields = block.split("\n").map((line) => /^(event|data): ?(.*)$/.exec(line)).filter(Boolean);
  const event = fields.find(([, name]) => name === "event")?.[2] ?? "message";
  const data = fields.filter(([, name]) => name === "data").map(([, , value]) => value).join("\n");
  return data ? { event, data: JSON.parse(data) } : null;
}
