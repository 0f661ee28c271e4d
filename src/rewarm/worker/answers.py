"""Answers of the worker: JSON bodies for values and for errors, in the dialect of the caller."""

from __future__ import annotations

import json
import traceback
from typing import Any, NamedTuple

import orjson

from rewarm import wire
from rewarm.errors import BY_CODE
from rewarm.worker.user import one_line


class Outcome(NamedTuple):
    """What became of one batch: an answer each, or (`answers` None) only bodies, all of them 200 and of one form."""

    run_us: int  # microseconds inside user code
    answers: list[wire.Answer] | None
    form: int = wire.FORM_JSON
    bodies: list[bytes] = []  # noqa: RUF012 - never changed, the usual default of a NamedTuple


class AnswerTooLarge(Exception):
    """Of one caller; the others of its batch get theirs."""


_ERROR_CHARS_MAX = 1 << 18  # of what user code raised, as AWS's clients see it
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def fault(code: str, message: str, error_type: str = "Error") -> wire.Answer:
    """An error of the service: the status belongs to the code."""
    body = orjson.dumps({"error": message, "code": code, "error_type": error_type})
    return wire.Answer(BY_CODE[code].status, wire.FORM_JSON, 0, b"", body)


def raised(kind: int, error: BaseException, code_dir: str | None, request_id: str = "") -> wire.Answer:
    """User code raised `error`: AWS's shape for Lambda callers, ours for all others."""
    if kind == wire.KIND_LAMBDA:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if code_dir is None or f.filename.startswith(code_dir)]
        body = {
            "errorMessage": str(error)[:_ERROR_CHARS_MAX], "errorType": type(error).__name__, "requestId": request_id,
            "stackTrace": [f"  {f.name} line {f.lineno}\n    {f.line}\n" for f in own],
        }  # fmt: skip
        return wire.Answer(200, wire.FORM_JSON, wire.FLAG_FUNCTION_ERROR, b"", orjson.dumps(body))
    code = "out_of_memory" if isinstance(error, MemoryError) else "function_error"
    return fault(code, one_line(error, code_dir), type(error).__name__)


def request_id(item: wire.Item) -> str:
    """The id of a Lambda call, else empty."""
    return str(orjson.loads(item.meta)["request_id"]) if item.kind == wire.KIND_LAMBDA and item.meta else ""


def bounded(answer: wire.Answer) -> wire.Answer:
    """The same. Raises AnswerTooLarge if it is more than a caller may get."""
    if len(answer.body) > wire.ANSWER_BYTES_MAX:
        limit = f"at most {wire.ANSWER_BYTES_MAX} ({wire.ANSWER_BYTES_MAX >> 20} MB) are allowed"
        raise AnswerTooLarge(f"the answer has {len(answer.body)} bytes, {limit}")
    return answer


def value(result: Any) -> wire.Answer:
    """What a handler returned: bytes as they are, everything else as JSON.

    Raises TypeError if it is neither and AnswerTooLarge if it is too much.
    """
    if isinstance(result, bytes | bytearray | memoryview):
        return bounded(wire.Answer(200, wire.FORM_RAW, 0, b"", bytes(result)))
    try:
        body = orjson.dumps(result, option=_OPTIONS)
    except (TypeError, ValueError):
        body = json.dumps(result).encode()  # integers beyond 64 bits, and the final word on what is not JSON
    return bounded(wire.Answer(200, wire.FORM_JSON, 0, b"", body))
