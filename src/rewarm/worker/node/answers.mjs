// Answers of the worker, in the dialect of the caller; the same as rewarm/worker/answers.py gives for Python.

import { described, isOutOfMemory, oneLine } from "./errors.mjs";
import { ANSWER_BYTES_MAX, FLAG_FUNCTION_ERROR, FORM_JSON, FORM_RAW, KIND_LAMBDA } from "./wire.mjs";

const STATUS = { bad_request: 400, function_error: 500, out_of_memory: 507 };

/** An error of the service: the status belongs to the code. */
export function fault(code, message, errorType = "Error") {
  return jsonAnswer({ error: message, code, error_type: errorType }, STATUS[code]);
}

/** User code threw `thrown`: AWS's shape for Lambda callers, ours for all others. */
export function raised(kind, thrown, codeDir) {
  const { type, message, stack } = described(thrown);
  if (kind === KIND_LAMBDA) {
    return jsonAnswer({ errorType: type, errorMessage: message, trace: stack }, 200, FLAG_FUNCTION_ERROR);
  }
  return fault(isOutOfMemory(thrown) ? "out_of_memory" : "function_error", oneLine(thrown, codeDir), type);
}

/** What a handler returned: bytes as they are, everything else as JSON. Throws if it is neither, or too much. */
export function value(result) {
  const raw = result instanceof Uint8Array;
  const body = raw ? Buffer.from(result) : Buffer.from(json(result));
  if (body.length > ANSWER_BYTES_MAX) {
    const limit = `at most ${ANSWER_BYTES_MAX} (${ANSWER_BYTES_MAX >> 20} MB) are allowed`;
    const error = new RangeError(`the answer has ${body.length} bytes, ${limit}`);
    error.name = "AnswerTooLarge";
    throw error;
  }
  return { status: 200, form: raw ? FORM_RAW : FORM_JSON, flags: 0, body };
}

function json(result) {
  const text = JSON.stringify(result === undefined ? null : result);
  if (text === undefined) throw new TypeError(`a ${typeof result} is not JSON serializable`);
  return text;
}

function jsonAnswer(body, status, flags = 0) {
  return { status, form: FORM_JSON, flags, body: Buffer.from(JSON.stringify(body)) };
}
