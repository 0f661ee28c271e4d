"""Bringing user code to life: import the module, find the entry, construct the class, pick its engine."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from rewarm.errors import RewarmError
from rewarm.facts.function import FunctionSpec

if TYPE_CHECKING:
    from rewarm.worker.instance import Engine
    from rewarm.worker.weights import Weights


#: Part of an error's text → what else to say of it. Empty but in a micro-VM, where errors mean more than elsewhere.
MEANINGS: dict[str, str] = {}


class UserError(Exception):
    """User code could not be brought up. `message` is one line; the traceback went to the function's log."""

    def __init__(self, message: str, error_type: str, code: str = "start_failed") -> None:
        super().__init__(message)
        self.message = message
        self.error_type = error_type
        self.code = code


def one_line(error: BaseException, code_dir: str | None = None) -> str:
    """`ValueError: bad shape (app.py line 12)`: the innermost line of the user's own files, if there is one."""
    said = _said(error, code_dir)
    return "; ".join((said, *(meaning for part, meaning in MEANINGS.items() if part in said)))


def _said(error: BaseException, code_dir: str | None) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    text = " ".join(text.split())[:500]
    if isinstance(error, SyntaxError) and error.filename:
        return f"SyntaxError: {error.msg} ({os.path.basename(error.filename)} line {error.lineno})"
    if code_dir:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename.startswith(code_dir):
                return f"{text} ({os.path.relpath(frame.filename, code_dir)} line {frame.lineno})"
    return text


def load_user(order: dict[str, Any]) -> tuple[Engine, dict[str, float], Weights | None]:
    """Carry out a LOAD order: `{"spec", "code_dir", "weights_path", "version"}` and, if there is one, "pack".

    Returns the engine, `{"user_s", "ready_s"}`: seconds for import and construction, and for opening the weights; and
    the weights, if there are any.
    Raises UserError.
    """
    spec = FunctionSpec.from_json(order["spec"])
    code_dir = str(order["code_dir"])
    settle(spec, code_dir)
    since_s = time.perf_counter()
    weights = _weights(order, code_dir)
    opened_s = time.perf_counter()
    target = find_entry(spec.entry, code_dir)
    if spec.kind == "handler":
        from rewarm.worker.handlers import HandlerEngine

        engine: Engine = HandlerEngine(target, spec, int(order["version"]))
    else:
        from rewarm.worker.arrays import ArrayEngine

        engine = ArrayEngine(construct(target, weights, code_dir), spec, int(order["version"]))
    done_s = time.perf_counter()
    return engine, {"user_s": done_s - opened_s, "ready_s": opened_s - since_s}, weights


def settle(spec: FunctionSpec, code_dir: str) -> None:
    """Make this process the place where the function's code runs."""
    os.environ.update(dict(spec.env))
    os.environ["AWS_LAMBDA_FUNCTION_NAME"] = spec.name
    sys.dont_write_bytecode = True  # a revision is immutable
    sys.path.insert(0, code_dir)
    os.chdir(code_dir)


def find_entry(entry: str, code_dir: str) -> Any:
    """The class or function that `module:Qualname` names. Raises UserError if it cannot be imported."""
    module_name, _, qualname = entry.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
        for part in qualname.split("."):
            target = getattr(target, part)
    except SystemExit as error:
        raise UserError(f"importing {module_name} called sys.exit({error.code!r})", "SystemExit") from error
    except RewarmError as error:
        raise UserError(f"{one_line(error, code_dir)}", type(error).__name__, "bad_definition") from error
    except Exception as error:
        traceback.print_exc()
        raise UserError(f"{module_name} does not import: {one_line(error, code_dir)}", type(error).__name__) from error
    return target


def _weights(order: dict[str, Any], code_dir: str) -> Weights | None:
    if not order.get("weights_path"):
        return None
    from rewarm.worker.weights import Weights

    try:
        pack = order.get("pack")
        return Weights.packed(order["weights_path"], pack) if pack else Weights(order["weights_path"])
    except RewarmError as error:
        raise UserError(error.message, type(error).__name__, error.code) from error
    except Exception as error:
        raise UserError(f"the weights cannot be opened: {one_line(error, code_dir)}", type(error).__name__) from error


def construct(cls: Any, weights: Any, code_dir: str) -> Any:
    """Runs the constructor, with the weights if it takes an argument. Raises UserError."""
    try:
        takes = [p for p in inspect.signature(cls).parameters.values() if p.kind != p.VAR_KEYWORD]
        return cls(weights) if takes and weights is not None else cls()
    except SystemExit as error:
        raise UserError(f"{cls.__name__}() called sys.exit({error.code!r})", "SystemExit") from error
    except RewarmError as error:  # weights that do not fit, or are damaged
        raise UserError(error.message, type(error).__name__, error.code) from error
    except Exception as error:
        traceback.print_exc()
        raise UserError(f"{cls.__name__}() raised {one_line(error, code_dir)}", type(error).__name__) from error
