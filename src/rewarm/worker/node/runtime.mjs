// An instance of a Node.js function: waits for code (until then it is a Lang layer), loads it, runs its batches.
//
// It knows one socket, descriptor 3. It says HELLO, is told to LOAD, says LOADED or FAILED, and from then on answers
// each RUN with a REPLY. Whatever user code does beyond throwing (exit, crash, hang, an unhandled rejection) ends this
// process and nothing else; the server sees it go.

import net from "node:net";
import { fileURLToPath } from "node:url";

import { HandlerEngine } from "./handler.mjs";
import { findHandler, UserError } from "./load.mjs";
import * as wire from "./wire.mjs";

const channel = new net.Socket({ fd: 3, readable: true, writable: true });
const reader = new wire.Reader();
let engine;

channel.on("data", (chunk) => reader.feed(chunk).forEach(carryOut));
channel.on("close", () => process.exit(0)); // the server let go of us
channel.on("error", () => process.exit(0));
await practise();
channel.write(wire.encodePlain(wire.HELLO, undefined, process.pid));

/**
 * Load and run a function that does nothing, while nobody waits: node compiles what it runs for the first time, and
 * sets up its loaders for both kinds of modules then. The first caller would wait twice as long with all that.
 */
async function practise() {
  const here = fileURLToPath(new URL(".", import.meta.url));
  const handler = await findHandler(here, "nothing.cjs", "handler");
  const spec = { name: "nothing", batched: false, memory_bytes: 0 };
  const item = { kind: wire.KIND_JSON, meta: Buffer.alloc(0), body: Buffer.from("{}") };
  const { answers } = await new HandlerEngine(handler, spec, 0, here).run([item], 0);
  wire.encodeReply(answers, 0, 0);
}

async function carryOut(frame) {
  if (frame.type === wire.LOAD) {
    await load(wire.decodePlain(frame));
    return;
  }
  const { answers, runUs } = await engine.run(wire.decodeRun(frame), frame.number);
  channel.write(wire.encodeReply(answers, frame.sequence, runUs));
}

/** Carry out a LOAD order: `{"spec", "code_dir", "version", "scratch"}`. */
async function load({ spec, code_dir: codeDir, version, scratch }) {
  Object.assign(process.env, { TMPDIR: scratch, HOME: scratch }, spec.env, { AWS_LAMBDA_FUNCTION_NAME: spec.name });
  process.chdir(codeDir);
  const since = performance.now();
  const [file, name] = spec.entry.split(":");
  try {
    engine = new HandlerEngine(await findHandler(codeDir, file, name), spec, version, codeDir);
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    const report = { code: error.code, error: error.message, error_type: error.errorType };
    channel.end(wire.encodePlain(wire.FAILED, report), () => process.exit(1));
    return;
  }
  channel.write(wire.encodePlain(wire.LOADED, { user_s: (performance.now() - since) / 1000, ready_s: 0 }));
}
