"""Experiment `streaming`: the process that forks its cases, from the outside."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from rewarm.errors import SystemFault
from rewarm.kernel import SINGLE_THREADED_ENV

_ORDER_S_MAX = 300.0
_STOP_S_MAX = 5.0


class CaseFailed(SystemFault):
    """A case of the experiment did not come to its answer."""


class Runtime:
    """One `rewarm.bench.streaming_case`: a context manager. `engine`: torch or onnxruntime, imported when it enters."""

    module = "rewarm.bench.streaming_case"

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self._said = b""

    def __enter__(self) -> Runtime:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, self.engine],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **SINGLE_THREADED_ENV},
        )  # fmt: skip
        try:
            self._line()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process, once it is idle or in any case soon."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def order(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """What the case found. Raises CaseFailed with what it said, or if it takes minutes."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dict(order)).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise CaseFailed(f"the {self.engine} runtime of the experiment ended") from None
        found = self._line()
        if "error" in found:
            raise CaseFailed(str(found["error"]))
        return found

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        file, until_s = self._process.stdout.fileno(), time.monotonic() + _ORDER_S_MAX
        while b"\n" not in self._said:
            ready, _, _ = select.select([file], [], [], max(0.0, until_s - time.monotonic()))
            piece = os.read(file, 1 << 16) if ready else b""
            if not piece:
                self._process.kill()
                raise CaseFailed(
                    f"the {self.engine} runtime of the experiment " + ("ended" if ready else "does not answer")
                )
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return dict(json.loads(line))
