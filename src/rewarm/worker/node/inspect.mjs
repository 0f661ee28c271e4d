// Look into a file before it is deployed: `node inspect.mjs FILE EXPORT REPORT`.
//
// Imports FILE in this (separate, short-lived) process and writes one JSON object to the file REPORT:
//
//     {"ok": true, "files": [...], "says": {...}}        or        {"ok": false, "code": "...", "error": "..."}
//
// `files` are the files of FILE's own folder that importing it pulled in (and its package.json, which says what kind of
// modules they are), relative to that folder; `says` is what the function's property `rewarm` says, if it has one.

import { spawnSync } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import { createRequire, register } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { MessageChannel, receiveMessageOnPort } from "node:worker_threads";

import { findHandler, UserError } from "./load.mjs";

const [file, name, report] = process.argv.slice(2);
const folder = path.dirname(file);

const { port1: seen, port2: port } = new MessageChannel();
register("./watch.mjs", import.meta.url, { data: { port }, transferList: [port] });

function localFiles() {
  const paths = Object.keys(createRequire(file).cache);
  for (let message; (message = receiveMessageOnPort(seen)); ) {
    if (message.message.startsWith("file:")) paths.push(fileURLToPath(message.message));
  }
  paths.push(file, ...[path.join(folder, "package.json")].filter(existsSync));
  const inside = paths.map((each) => path.relative(folder, each)).filter((each) => !each.startsWith(".."));
  return [...new Set(inside)].sort();
}

/** Where a file does not parse: node prints it, but keeps it from programs. */
function unparsable() {
  for (const each of localFiles().filter((name) => /^(?!node_modules).*js$/.test(name))) {
    const { stderr } = spawnSync(process.execPath, ["--check", path.join(folder, each)], { encoding: "utf8" });
    const line = /^.*:(\d+)\n/.exec(stderr);
    if (line) return ` (${each} line ${line[1]})`;
  }
  return "";
}

let result;
try {
  const handler = await findHandler(folder, path.basename(file), name);
  result = { ok: true, files: localFiles(), says: handler.rewarm ?? {} };
} catch (error) {
  if (!(error instanceof UserError)) throw error;
  const place = error.errorType === "SyntaxError" ? unparsable() : "";
  result = { ok: false, code: error.code, error: error.message + place };
}
writeFileSync(report, JSON.stringify(result));
process.exit(0); // timers and servers of the file must not hold it up
