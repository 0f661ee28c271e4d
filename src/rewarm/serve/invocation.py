"""From the headers of an invocation to the Call that goes to the core."""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Mapping

import orjson

from rewarm import wire
from rewarm.errors import BadRequest, NotFound, NotImplementedYet
from rewarm.facts.function import Revision
from rewarm.serve import answers
from rewarm.serve.call import Call
from rewarm.serve.router import Target

INF = float("inf")
Headers = list[tuple[bytes, bytes]]

#: The headers that an invocation is made of; all others are the application's business.
INTERESTING = frozenset({
    b"content-type", b"content-length", b"content-encoding", b"expect", b"inference-header-content-length",
    b"rewarm-timeout-ms", b"x-amz-invocation-type", b"x-amz-client-context", b"x-amz-log-type",
})  # fmt: skip


def find(function: str, version: str, revision: Revision | None) -> Revision:
    """The revision that a URL asks for. Raises NotFound."""
    if revision is None or (version and version != str(revision.version)):
        what = f"version {version!r} of {function!r}" if revision is not None else f"function {function!r}"
        raise NotFound(f"there is no {what}; deploy it, or see what there is with: rewarm ls")
    return revision


def complete(call: Call, target: Target, found: Mapping[bytes, bytes], revision: Revision | None) -> float:
    """Put into `call` what its headers say; returns the caller's own time limit in seconds (inf without one).

    A Lambda call is marked as one before anything can fail, so that its error is told as AWS tells it. Raises NotFound,
    BadRequest or NotImplementedYet.
    """
    name, kind, version = target
    body = call.payload[2]
    if kind == wire.KIND_LAMBDA:
        call.payload = (kind, _lambda_meta(call, found), body)
    revision = find(name, version, revision)
    if kind == wire.KIND_JSON:
        if found.get(b"content-type", b"").startswith(b"application/octet-stream"):
            call.payload = (wire.KIND_RAW, b"", body)
    elif kind == wire.KIND_V2:
        call.payload = (kind, found.get(b"inference-header-content-length", b"")[: wire.META_BYTES_MAX], body)
    else:
        call.version = str(revision.version)
        _check_lambda_type(found.get(b"x-amz-invocation-type", b"RequestResponse"))
    if found.get(b"content-encoding", b"identity") != b"identity":
        raise BadRequest("compressed bodies are not supported; send it uncompressed")
    limit_s = _timeout_s(found[b"rewarm-timeout-ms"]) if b"rewarm-timeout-ms" in found else INF
    call.deadline_s = min(call.deadline_s, call.arrived_s + limit_s)
    return limit_s


def is_dry_run(target: Target, found: Mapping[bytes, bytes]) -> bool:
    """AWS Lambda's DryRun: everything is checked, nothing is run."""
    return target.kind == wire.KIND_LAMBDA and found.get(b"x-amz-invocation-type") == b"DryRun"


def dry_run_answer(call: Call, date_line: bytes) -> bytes:
    return b"%s%sx-amzn-requestid: %s\r\ncontent-length: 0\r\n%s\r\n" % (
        answers.STATUS_LINES[204], date_line, call.lambda_id.encode(), answers.timing(call, 204, 0, 0),
    )  # fmt: skip


def _check_lambda_type(how: bytes) -> None:
    if how == b"Event":
        raise NotImplementedYet("asynchronous invocation (Event) is not there yet; use RequestResponse")
    if how not in (b"RequestResponse", b"DryRun"):
        raise BadRequest(f"X-Amz-Invocation-Type {how.decode('latin-1')!r}: use RequestResponse, DryRun or Event")


def _lambda_meta(call: Call, found: Mapping[bytes, bytes]) -> bytes:
    """Marks the call as a Lambda call and says what the worker needs for its context."""
    call.lambda_id = str(uuid.uuid4())
    call.plain = False
    if found.get(b"x-amz-log-type", b"").lower() == b"tail":
        call.log_tail = True
        call.wall_s = time.time()
    meta: dict[str, object] = {"request_id": call.lambda_id}
    if b"x-amz-client-context" in found:
        meta["client_context"] = _client_context(found[b"x-amz-client-context"])
    return orjson.dumps(meta)


def _client_context(value: bytes) -> object:
    try:
        return orjson.loads(base64.b64decode(value, validate=True))
    except (binascii.Error, orjson.JSONDecodeError):
        return None  # as AWS does: an unreadable client context is no client context


def _timeout_s(value: bytes) -> float:
    try:
        timeout_ms = float(value)
    except ValueError:
        timeout_ms = -1.0
    if not 0 < timeout_ms < 1e9:
        raise BadRequest(f"Rewarm-Timeout-Ms must be a number of milliseconds above 0, not {value.decode('latin-1')!r}")
    return timeout_ms * 1e-3
