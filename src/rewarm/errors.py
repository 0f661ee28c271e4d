"""Every error that rewarm raises or answers with, in one tree.

RewarmError
├── UsageError                  the caller's input is wrong (CLI exit 2)
│   ├── BadRequest              400  malformed body, tensor of a wrong name, dtype or shape
│   │   └── BadTensor           400
│   ├── BadDefinition           422  a decorator, unit, policy or deploy that cannot be meant
│   ├── NotFound                404
│   ├── MethodNotAllowed        405
│   ├── HeadersTooLarge         431
│   ├── BodyTooLarge            413
│   ├── RequestTimeout          408  the client sent too slowly
│   └── NotImplementedYet       501
├── Busy                        429  a bounded queue is full: retry later
├── Unavailable                 503  draining, no memory, no connection slot: retry later
│   └── OverBudget              503  cannot fit even after everything idle is freed
├── DeadlineExceeded            504  passed in the queue, the work was not run
├── FunctionError               500  user code raised or answered nonsense
│   ├── StartFailed             500  the module did not import or its constructor raised
│   ├── FunctionTimeout         504  ran past its timeout and was killed
│   └── InstanceDied            502  crashed, exited, or was killed while it held the request
│       └── OutOfMemory         507
└── SystemFault                 500  our side: home locked, port in use, driver failure (CLI exit 1)
    ├── HomeLocked
    ├── HomeTooNew
    ├── PortInUse
    ├── NoServer                none answers at the URL (raised by a client)
    ├── MicrovmUnavailable      500  no QEMU, no guest, no Debian packages to make one of: says what to install
    ├── WeightsCorrupt          500  a pack, or a file it refers to, is missing or not what was written: deploy again
    ├── SnapshotCorrupt         500  a file of a snapshot is missing or not what was written: it is made again
    ├── SnapshotMismatch        500  a snapshot of another kernel, root file system, VMM, CPU model or format
    ├── SnapshotFailed          500  a snapshot could not be made
    └── SandboxFailed           500

`status` is the HTTP status, `code` the stable word in the JSON answer, `exit_code` what the CLI exits with,
`retry_after_s` how long a caller should wait before trying again (None: do not). The class decides; an instance
may refine `exit_code` and `retry_after_s`.
"""

from __future__ import annotations

from typing import ClassVar


class RewarmError(Exception):
    """Base of all errors of rewarm. `str(error)` is one line that says what is wrong and what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    exit_code: int = 1
    retry_after_s: float | None = None

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    def to_json(self) -> dict[str, object]:
        """The body of an error answer: `{"error", "code"[, "retry_after_s"]}`."""
        body: dict[str, object] = {"error": self.message, "code": self.code}
        if self.retry_after_s is not None:
            body["retry_after_s"] = self.retry_after_s
        return body


class UsageError(RewarmError):
    status = 400
    code = "usage"
    exit_code = 2


class BadRequest(UsageError):
    code = "bad_request"


class BadTensor(BadRequest):
    code = "bad_tensor"


class BadDefinition(UsageError):
    status = 422
    code = "bad_definition"


class NotFound(UsageError):
    status = 404
    code = "not_found"


class MethodNotAllowed(UsageError):
    status = 405
    code = "method_not_allowed"


class HeadersTooLarge(UsageError):
    status = 431
    code = "headers_too_large"


class BodyTooLarge(UsageError):
    status = 413
    code = "body_too_large"


class RequestTimeout(UsageError):
    status = 408
    code = "request_timeout"


class NotImplementedYet(UsageError):
    status = 501
    code = "not_implemented"


class Busy(RewarmError):
    status = 429
    code = "queue_full"
    exit_code = 3
    retry_after_s = 1.0


class Unavailable(RewarmError):
    status = 503
    code = "unavailable"
    exit_code = 3
    retry_after_s = 1.0


class OverBudget(Unavailable):
    code = "over_memory_budget"


class DeadlineExceeded(RewarmError):
    status = 504
    code = "deadline_exceeded"
    exit_code = 4


class FunctionError(RewarmError):
    """User code raised. `error_type` is the class name of its exception."""

    status = 500
    code = "function_error"
    exit_code = 5

    def __init__(self, message: str, *, error_type: str = "Error", retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.error_type = error_type


class StartFailed(FunctionError):
    code = "start_failed"


class FunctionTimeout(FunctionError):
    status = 504
    code = "function_timeout"


class InstanceDied(FunctionError):
    status = 502
    code = "instance_died"


class OutOfMemory(InstanceDied):
    status = 507
    code = "out_of_memory"


class SystemFault(RewarmError):
    code = "system_fault"


class HomeLocked(SystemFault):
    code = "home_locked"


class HomeTooNew(SystemFault):
    code = "home_too_new"


class PortInUse(SystemFault):
    code = "port_in_use"


class NoServer(SystemFault):
    code = "no_server"


class MicrovmUnavailable(SystemFault):
    code = "microvm_unavailable"


class WeightsCorrupt(SystemFault):
    code = "weights_corrupt"


class SnapshotCorrupt(SystemFault):
    code = "snapshot_corrupt"


class SnapshotMismatch(SystemFault):
    code = "snapshot_mismatch"


class SnapshotFailed(SystemFault):
    code = "snapshot_failed"


class SandboxFailed(SystemFault):
    code = "sandbox_failed"


def _walk(cls: type[RewarmError]) -> list[type[RewarmError]]:
    return [cls] + [found for child in cls.__subclasses__() for found in _walk(child)]


#: code → class, so that an error can cross a process boundary by its code and come out with the same type.
BY_CODE: dict[str, type[RewarmError]] = {cls.code: cls for cls in _walk(RewarmError)}


def from_code(code: str, message: str, error_type: str = "Error") -> RewarmError:
    """The error that `code` names; an unknown code becomes a plain FunctionError."""
    cls = BY_CODE.get(code, FunctionError)
    if issubclass(cls, FunctionError):
        return cls(message, error_type=error_type)
    return cls(message)
