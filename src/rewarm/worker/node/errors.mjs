// What user code threw, for a person, for a caller, for the log. It may be anything: nothing here trusts it.

import path from "node:path";
import { pathToFileURL } from "node:url";
import { inspect } from "node:util";

const LINE_CHARS_MAX = 500;
const ERROR_CHARS_MAX = 1 << 18;

/** `{type, message, stack}` of anything thrown; `stack` is a list of lines. */
export function described(thrown) {
  try {
    if (thrown instanceof Error || typeof thrown?.stack === "string") {
      const message = String(thrown.message).slice(0, ERROR_CHARS_MAX);
      return { type: String(thrown.name), message, stack: String(thrown.stack).slice(0, ERROR_CHARS_MAX).split("\n") };
    }
    return { type: typeof thrown, message: String(thrown).slice(0, ERROR_CHARS_MAX), stack: [] };
  } catch {
    return { type: "Error", message: "what was thrown cannot be read", stack: [] };
  }
}

/** `Error: bad shape (app.mjs line 12)`: the innermost line of the user's own files, if there is one. */
export function oneLine(thrown, codeDir) {
  const { type, message, stack } = described(thrown);
  const text = (message ? `${type}: ${message}` : type).replace(/\s+/g, " ").trim().slice(0, LINE_CHARS_MAX);
  for (const line of stack) {
    for (const prefix of [`${pathToFileURL(codeDir).href}/`, codeDir + path.sep]) {
      const at = line.indexOf(prefix);
      const place = at < 0 ? null : /^(.+?):(\d+)(?::\d+)?\)?$/.exec(line.slice(at + prefix.length));
      if (place) return `${text} (${place[1]} line ${place[2]})`;
    }
  }
  return text;
}

/** Into the function's log, as node itself would print it. */
export function log(thrown) {
  let text = "what was thrown cannot be printed";
  try {
    text = inspect(thrown);
  } catch {
    // a getter or a proxy of the user's
  }
  process.stderr.write(`${text}\n`);
}

/** True if a buffer could not be allocated: the limit of memory, met where it can be caught. */
export function isOutOfMemory(thrown) {
  if (!(thrown instanceof RangeError)) return false;
  return thrown.code === "ERR_MEMORY_ALLOCATION_FAILED" || /allocation failed/i.test(thrown.message);
}
