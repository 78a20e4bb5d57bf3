/** Prompts as people type them, and the endpoint that each is a question for. */

const BETWEEN = " ; ";
const MAY_HAVE_MASKS = new Set(["detect", "segment", "generate"]);

export const TASKS = [
  { name: "caption", title: "Caption", help: "What the image shows. “en” is the language of the answer." },
  { name: "ask", title: "Ask", help: "A question about the image, after “answer” and a language." },
  { name: "ocr", title: "OCR", help: "The text that is written in the image." },
  { name: "detect", title: "Detect", help: "Boxes around the things you name; a semicolon between two." },
  { name: "segment", title: "Segment", help: "Boxes and masks of the things you name; a semicolon between two." },
  { name: "classify", title: "Classify", help: "The probability of each choice; a semicolon between two." },
  { name: "free", title: "Free", help: "Any prompt that the model was trained with, sent as it stands." },
];

const USUAL = {
  caption: "caption en",
  ask: "answer en what is in the image?",
  ocr: "ocr",
  detect: "detect person ; car",
  segment: "segment person",
  classify: "answer en is it day or night?",
  free: "",
};
const USUAL_CHOICES = "day ; night";
const SAMPLE = { classify: "answer en how many shapes are there?" };
const SAMPLE_CHOICES = "1 ; 2 ; 3 ; 4";
const TASK_OF_SAMPLE = { caption: "caption", answer: "ask", ocr: "ocr", detect: "detect", segment: "segment" };

/** For each task a prompt to begin with: a sample's own questions, where it is one. */
export function suggestions(questions) {
  if (!questions) return { prompts: { ...USUAL }, choices: USUAL_CHOICES };
  const own = questions.map(({ task, prompt }) => [TASK_OF_SAMPLE[task], prompt]);
  return { prompts: { ...USUAL, ...SAMPLE, ...Object.fromEntries(own) }, choices: SAMPLE_CHOICES };
}

/** The task that a prompt's first words name. */
export function taskOf(prompt) {
  const { path } = endpoint(prompt);
  return path === "generate" ? looseTask(prompt) : path;
}

/** Where the part begins that people change: after `detect `, or `answer en `. */
export function payloadStart(prompt) {
  const verb = /^(caption |answer [a-z]+ |detect |segment )/i.exec(prompt);
  return verb ? verb[0].length : 0;
}

/**
 * The path and the fields of a prompt's question.
 *
 * A typed endpoint asks for exactly what was typed, or it is not used: `generate` sends a prompt as it stands.
 */
export function endpoint(prompt, choices = null) {
  const text = prompt.trim();
  if (choices !== null) return { path: "classify", fields: { prompt: text, choices: listed(choices) } };
  const caption = /^caption ([a-z]+)$/.exec(text);
  if (caption) return { path: "caption", fields: { language: caption[1] } };
  const answer = /^answer ([a-z]+) (.+)$/s.exec(text);
  if (answer) return { path: "ask", fields: { question: answer[2], language: answer[1] } };
  if (text === "ocr") return { path: "ocr", fields: {} };
  return objects(text) ?? { path: "generate", fields: { prompt: text } };
}

/** A question with the form that masks are to have, where its answer may have any. */
export function withMasks({ path, fields }, masks) {
  return MAY_HAVE_MASKS.has(path) ? { path, fields: { ...fields, masks } } : { path, fields };
}

/** The parts of a text that semicolons separate. */
export function listed(text) {
  return text.split(";").map((part) => part.trim()).filter(Boolean);
}

function objects(text) {
  const typed = /^(detect|segment) (.+)$/s.exec(text);
  if (!typed) return null;
  const labels = listed(typed[2]);
  const unlike = labels.join(BETWEEN) !== typed[2] || new Set(labels).size !== labels.length;
  return unlike ? null : { path: typed[1], fields: { labels } };
}

function looseTask(prompt) {
  const verb = /^\s*(detect|segment)\b/i.exec(prompt);
  return verb ? verb[1].toLowerCase() : "free";
}
