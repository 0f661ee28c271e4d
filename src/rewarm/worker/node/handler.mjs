// The engine: `handler(event, context)`, `handler(event, context, callback)`, or lists of events and contexts.

import { randomUUID } from "node:crypto";

import { fault, raised, value } from "./answers.mjs";
import { log } from "./errors.mjs";
import { KIND_LAMBDA, KIND_RAW, KIND_V2 } from "./wire.mjs";

const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Runs a handler on each request, or once on all of them. */
export class HandlerEngine {
  #handler;
  #spec;
  #version;
  #codeDir;

  constructor(handler, spec, version, codeDir) {
    this.#handler = handler;
    this.#spec = spec;
    this.#version = version;
    this.#codeDir = codeDir;
  }

  /** One answer per item, in order, and the microseconds inside the handler. */
  async run(items, limitMs) {
    const answers = new Array(items.length);
    const calls = [];
    items.forEach(({ kind, meta, body }, place) => {
      const read = this.#read(kind, body);
      if (read.fault) answers[place] = read.fault;
      else calls.push({ place, kind, event: read.event, context: this.#context(kind, meta, limitMs) });
    });
    const since = performance.now();
    if (!this.#spec.batched) {
      for (const call of calls) answers[call.place] = await this.#one(call);
    } else if (calls.length > 0) {
      await this.#all(calls, answers);
    }
    return { answers, runUs: Math.round((performance.now() - since) * 1000) };
  }

  async #one({ kind, event, context }) {
    try {
      return value(await invoke(this.#handler, event, context));
    } catch (error) {
      return this.#failed(kind, error);
    }
  }

  async #all(calls, answers) {
    let results;
    try {
      results = await this.#handler(calls.map((call) => call.event), calls.map((call) => call.context));
      if (!Array.isArray(results) || results.length !== calls.length) {
        const got = Array.isArray(results) ? `${results.length} answers` : typeof results;
        throw new TypeError(`a batched handler returns a list of ${calls.length} answers, not ${got}`);
      }
    } catch (error) {
      log(error);
      for (const { place, kind } of calls) answers[place] = raised(kind, error, this.#codeDir);
      return;
    }
    calls.forEach(({ place, kind }, n) => {
      try {
        answers[place] = value(results[n]);
      } catch (error) {
        answers[place] = this.#failed(kind, error); // what is not JSON is the misfortune of its own caller
      }
    });
  }

  #failed(kind, error) {
    log(error);
    return raised(kind, error, this.#codeDir);
  }

  /** `{event}`, or `{fault}` if the body cannot be read. */
  #read(kind, body) {
    if (kind === KIND_RAW) return { event: body };
    const { name } = this.#spec;
    if (kind === KIND_V2) {
      return { fault: fault("bad_request", `'${name}' is a handler, not a model on arrays; use POST /invoke/${name}`) };
    }
    if (body.length === 0) return { event: {} };
    try {
      return { event: JSON.parse(UTF8.decode(body)) };
    } catch (error) {
      return { fault: fault("bad_request", `the body is not JSON: ${error.message}`, error.name) };
    }
  }

  /** The second argument, with the fields that AWS Lambda documents for Node.js. */
  #context(kind, meta, limitMs) {
    const { name, memory_bytes: memoryBytes } = this.#spec;
    const call = kind === KIND_LAMBDA && meta.length > 0 ? JSON.parse(meta.toString()) : {};
    const deadline = performance.now() + limitMs;
    return {
      callbackWaitsForEmptyEventLoop: true,
      functionName: name,
      functionVersion: String(this.#version),
      invokedFunctionArn: `arn:aws:lambda:local:000000000000:function:${name}`,
      memoryLimitInMB: String(Math.floor(memoryBytes / 1048576)),
      awsRequestId: call.request_id || randomUUID(),
      logGroupName: `/aws/lambda/${name}`,
      logStreamName: name,
      identity: undefined,
      clientContext: call.client_context ?? undefined,
      getRemainingTimeInMillis: () => Math.max(0, Math.floor(deadline - performance.now())),
    };
  }
}

/** What a handler returns, promises, or (if it declares a third parameter) gives to its callback. */
function invoke(handler, event, context) {
  if (handler.length < 3) return handler(event, context);
  return new Promise((resolve, reject) => {
    const callback = (error, result) => (error === undefined || error === null ? resolve(result) : reject(error));
    const returned = handler(event, context, callback);
    if (typeof returned?.then === "function") returned.then(resolve, reject);
  });
}
