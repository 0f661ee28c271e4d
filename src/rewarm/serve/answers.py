"""HTTP answers as bytes, built in one formatting step each."""

from __future__ import annotations

import base64
from http import HTTPStatus
from typing import Final

import orjson

from rewarm import wire
from rewarm.errors import FunctionError, RewarmError, from_code
from rewarm.facts.request import Loading
from rewarm.facts.sandbox import StartKind
from rewarm.serve.call import Call

STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_START = {kind: kind.value.encode() for kind in StartKind}
_FORM = {
    wire.FORM_JSON: b"content-type: application/json\r\n",
    wire.FORM_RAW: b"content-type: application/octet-stream\r\n",
    wire.FORM_V2_BINARY: b"content-type: application/octet-stream\r\ninference-header-content-length: %s\r\n",
}
_BAD_REQUEST: Final = 400
_CLOSE = b"connection: close\r\n"

#: AWS's names for our errors (Lambda Invoke API).
_AWS_NAMES = {
    "not_found": "ResourceNotFoundException",
    "queue_full": "TooManyRequestsException",
    "body_too_large": "RequestTooLargeException",
    "bad_request": "InvalidRequestContentException",
    "bad_tensor": "InvalidRequestContentException",
    "deadline_exceeded": "TooManyRequestsException",
}


# Looking these up takes a fraction of formatting a number, twice per request.
_MS_MAX: Final = 1 << 13
_MS: Final = [b"%d.%03d" % divmod(us, 1000) for us in range(_MS_MAX)]  # microseconds as milliseconds
_LENGTH_END: Final = b"\r\ncontent-length: %d\r\n\r\n"
_LENGTHS_MAX: Final = 1 << 12
_LENGTH_ENDS: Final = [_LENGTH_END % size for size in range(_LENGTHS_MAX)]


def ms_text(seconds: float) -> bytes:
    """Milliseconds with three decimals."""
    us = int(seconds * 1e6)
    return _MS[us] if 0 <= us < _MS_MAX else b"%.3f" % (seconds * 1e3)


def length_end(size: int) -> bytes:
    """What follows the last header but one: a line end, the body's length, the empty line."""
    return _LENGTH_ENDS[size] if size < _LENGTHS_MAX else _LENGTH_END % size


def timing(call: Call, status: int, run_us: int, size: int) -> bytes:
    """The headers that say where the time went. Queue time does not include the start-up that it waited for.

    What no user code was run for, a body that does not decode included, found no start.
    """
    start = b"rewarm-start: %s\r\n" % _START[call.start] if call.started_s and status != _BAD_REQUEST else b""
    queue_ms = max(0.0, call.started_s - call.arrived_s - call.init_s) * 1e3
    return (
        b"%srewarm-queue-ms: %.3f\r\nrewarm-init-ms: %.3f\r\nrewarm-run-ms: %.3f\r\nrewarm-batch-size: %d\r\n"
        % (start, queue_ms, call.init_s * 1e3, run_us * 1e-3, size)
    )  # fmt: skip


#: What a worker reports of its weights (worker.weights.Weights.report), and what was read ahead, as the header says it.
_LOADED = {
    "ttfi_ms": "ttfi-ms=%.1f", "predicted_ms": "predicted-ms=%.1f", "bubble_ms": "bubble-ms=%.1f",
    "read_bytes": "read-bytes=%d", "pinned_bytes": "pinned-bytes=%d", "bandwidth_mb_s": "bandwidth-mb-s=%.1f",
    "ahead_bytes": "ahead-bytes=%d",
}  # fmt: skip


def loaded_line(loaded: Loading) -> bytes:
    """How the weights came, as a dictionary of RFC 9651: `rewarm-weights: ttfi-ms=156.0, bubble-ms=52.1, …`."""
    said = ", ".join(form % loaded.figures[key] for key, form in _LOADED.items() if key in loaded.figures)
    return b"rewarm-weights: %s\r\n" % said.encode()


def warm_forms(run_us: int, size: int, common: bytes) -> tuple[bytes, bytes]:
    """How the answers of by far most requests begin, for one batch: JSON and raw. Then come the queue time
    (`ms_text`), the length (`length_end`) and the body."""
    rest = (
        b"rewarm-start: warm\r\nrewarm-init-ms: 0.000\r\nrewarm-run-ms: %.3f\r\nrewarm-batch-size: %d\r\n"
        b"%srewarm-queue-ms: " % (run_us * 1e-3, size, common)
    )
    ok = STATUS_LINES[200]
    return ok + _FORM[wire.FORM_JSON] + rest, ok + _FORM[wire.FORM_RAW] + rest


def render(call: Call, answer: wire.AnyAnswer, run_us: int, size: int, common: bytes) -> bytes:
    """The whole answer. `common` holds header lines that are the same for every answer of the moment (Date)."""
    status, form, flags, meta, body = answer
    if status >= 400 and call.lambda_id:  # the worker refused the body: said as AWS says it
        return _lambda_refusal(call, body, common)
    form_line = _FORM[form]
    if form == wire.FORM_V2_BINARY:
        form_line = form_line % meta
    extra = common
    if call.lambda_id:
        extra += _lambda_headers(call, bool(flags & wire.FLAG_FUNCTION_ERROR))
    if call.close:
        extra += _CLOSE
    return b"%s%scontent-length: %d\r\n%s%s\r\n%s" % (
        STATUS_LINES[status], form_line, len(body), timing(call, status, run_us, size), extra, body,
    )  # fmt: skip


def render_error(call: Call, error: RewarmError, common: bytes) -> bytes:
    """The answer of a request that was not run, or was lost with its instance."""
    status, body, extra = error.status, orjson.dumps(error.to_json()), common
    if call.lambda_id:
        status, body, more = _lambda_error(call, error)
        extra += more
    return plain(status, body, extra + timing(call, status, 0, 0) + _retry_after(error), close=call.close)


def plain(status: int, body: bytes, extra: bytes = b"", *, close: bool = False) -> bytes:
    """A JSON answer with no call behind it."""
    return b"%scontent-type: application/json\r\ncontent-length: %d\r\n%s%s\r\n%s" % (
        STATUS_LINES[status], len(body), extra, _CLOSE if close else b"", body,
    )  # fmt: skip


def error_answer(error: RewarmError, extra: bytes = b"", *, close: bool = False, aws: bool = False) -> bytes:
    """The plain answer for an error before there is a call."""
    if aws:
        name, status, fault = _lambda_fault(error)
        return plain(status, fault, extra + b"x-amzn-errortype: %s\r\n" % name.encode(), close=close)
    return plain(error.status, orjson.dumps(error.to_json()), extra + _retry_after(error), close=close)


def _retry_after(error: RewarmError) -> bytes:
    return b"" if error.retry_after_s is None else b"retry-after: %d\r\n" % max(1, round(error.retry_after_s))


# ------------------------------------------------------------------ AWS Lambda


def _lambda_headers(call: Call, failed: bool) -> bytes:
    failure = b"x-amz-function-error: Unhandled\r\n" if failed else b""
    return b"x-amzn-requestid: %s\r\nx-amz-executed-version: %s\r\n%s" % (
        call.lambda_id.encode(), call.version.encode(), failure,
    )  # fmt: skip


def _lambda_error(call: Call, error: RewarmError) -> tuple[int, bytes, bytes]:
    """As AWS has it: what the function did wrong is a 200 with a flag; what the service could not do is an error."""
    if isinstance(error, FunctionError):
        kind = "Sandbox.Timedout" if error.code == "function_timeout" else "Runtime.ExitError"
        report = {"errorMessage": error.message, "errorType": kind, "requestId": call.lambda_id}
        return 200, orjson.dumps(report), _lambda_headers(call, True)
    name, status, fault = _lambda_fault(error)
    return status, fault, b"x-amzn-errortype: %s\r\n" % name.encode() + _lambda_headers(call, False)


def _lambda_refusal(call: Call, body: bytes, common: bytes) -> bytes:
    said = orjson.loads(body)
    return render_error(call, from_code(said["code"], said["error"], said.get("error_type", "Error")), common)


def _lambda_fault(error: RewarmError) -> tuple[str, int, bytes]:
    """AWS's name for what the service could not do, the status and the body."""
    name = _AWS_NAMES.get(error.code, "ServiceException")
    status = 429 if name == "TooManyRequestsException" else error.status
    fault = {"Type": "User" if status < 500 else "Service", "Message": error.message, "message": error.message}
    if status == 429:
        fault["Reason"] = "ReservedFunctionConcurrentInvocationLimitExceeded"
    return name, status, orjson.dumps(fault)


def lambda_log(call: Call, lines: list[str], run_ms: float, memory_mb: int) -> bytes:
    """The X-Amz-Log-Result header: base64 of the last 4 KB of the log, in Lambda's form."""
    billed = max(1, round(run_ms + call.init_s * 1e3 + 0.499))
    init = f"\tInit Duration: {call.init_s * 1e3:.2f} ms" if call.init_s else ""
    text = "\n".join((
        f"START RequestId: {call.lambda_id} Version: {call.version}",
        *lines,
        f"END RequestId: {call.lambda_id}",
        f"REPORT RequestId: {call.lambda_id}\tDuration: {run_ms:.2f} ms\tBilled Duration: {billed} ms"
        f"\tMemory Size: {memory_mb} MB{init}\n",
    ))  # fmt: skip
    return b"x-amz-log-result: " + base64.b64encode(text.encode()[-4096:]) + b"\r\n"
