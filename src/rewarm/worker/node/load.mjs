// Bringing user code to life: import the file, find the function.

import path from "node:path";
import { pathToFileURL } from "node:url";

import { log, oneLine } from "./errors.mjs";

/** User code could not be brought up. `message` is one line; the stack went to the log. */
export class UserError extends Error {
  constructor(message, errorType, code = "start_failed") {
    super(message);
    this.errorType = errorType;
    this.code = code;
  }
}

/** The function that `file` exports as `name` ("handler", "routes.hello"). Throws UserError. */
export async function findHandler(codeDir, file, name) {
  let module;
  try {
    module = await import(pathToFileURL(path.join(codeDir, file)).href);
  } catch (error) {
    log(error);
    throw new UserError(`${file} does not import: ${oneLine(error, codeDir)}`, error?.name ?? "Error");
  }
  // A CommonJS module's exports are its default export; the names of some of them are known beside it.
  const found = lookUp(module, name) ?? lookUp(module.default, name);
  if (typeof found === "function") return found;
  const exported = [...new Set([...Object.keys(module), ...Object.keys(module.default ?? {})])].sort();
  const has = exported.length > 0 ? `it exports ${exported.join(", ")}` : "it exports nothing";
  throw new UserError(`${file} exports no function '${name}'; ${has}`, "TypeError", "bad_definition");
}

function lookUp(from, name) {
  return name.split(".").reduce((value, part) => value?.[part], from);
}
