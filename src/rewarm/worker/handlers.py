"""The engine for Lambda-style handlers: `handler(event, context)`, or lists of both if batched.

An event is the JSON body (an empty body is `{}`), or the bytes of an `application/octet-stream` body.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import orjson

from rewarm import wire
from rewarm.facts.function import FunctionSpec
from rewarm.worker import answers
from rewarm.worker.context import Context
from rewarm.worker.user import one_line


class HandlerEngine:
    """Runs a handler on each item, or once on all of them."""

    def __init__(self, handler: Callable[..., Any], spec: FunctionSpec, version: int) -> None:
        self._handler = handler
        self._spec = spec
        self._version = version
        self._code_dir = sys.path[0]

    def run(self, items: list[wire.Item], limit_ms: int) -> answers.Outcome:
        """One answer per item, in order, and the microseconds inside the handler."""
        results: list[wire.Answer | None] = [None] * len(items)
        events: list[Any] = []
        contexts: list[Context] = []
        places: list[int] = []
        for place, item in enumerate(items):
            event = self._event(item)
            if isinstance(event, wire.Answer):
                results[place] = event
                continue
            meta = orjson.loads(item.meta) if item.kind == wire.KIND_LAMBDA and item.meta else {}
            events.append(event)
            contexts.append(Context(self._spec.name, self._version, self._spec.memory_bytes, limit_ms / 1e3, meta))
            places.append(place)
        since_ns = time.perf_counter_ns()
        if self._spec.batched:
            self._run_batch(items, events, contexts, places, results)
        else:
            for event, context, place in zip(events, contexts, places, strict=True):
                results[place] = self._run_one(items[place].kind, event, context)
        run_us = (time.perf_counter_ns() - since_ns) // 1000
        return answers.Outcome(
            run_us, [r if r is not None else answers.fault("internal", "no answer") for r in results]
        )

    def run_bodies(self, kind: int, bodies: list[bytes], limit_ms: int) -> answers.Outcome:
        """Handlers have no shortcut: an event is decoded by itself in any case."""
        return self.run([wire.Item(kind, b"", body) for body in bodies], limit_ms)

    def _event(self, item: wire.Item) -> Any:
        if item.kind == wire.KIND_RAW:
            return bytes(item.body)
        if item.kind == wire.KIND_V2:
            text = f"{self._spec.name!r} is a handler, not a model on arrays; use POST /invoke/{self._spec.name}"
            return answers.fault("bad_request", text)
        if not item.body:
            return {}
        try:
            return orjson.loads(item.body)
        except orjson.JSONDecodeError as error:
            return answers.fault("bad_request", f"the body is not JSON: {error}")
        except Exception as error:
            return answers.fault("bad_request", f"the body cannot be decoded: {one_line(error)}")

    def _run_one(self, kind: int, event: Any, context: Context) -> wire.Answer:
        try:
            return answers.value(self._handler(event, context))
        except Exception as error:
            traceback.print_exc()
            return answers.raised(kind, error, self._code_dir, context.aws_request_id)

    def _run_batch(
        self, items: list[wire.Item], events: list[Any], contexts: list[Context], places: list[int],
        results: list[wire.Answer | None],
    ) -> None:  # fmt: skip
        if not events:
            return
        try:
            outputs = self._handler(events, contexts)
            if not isinstance(outputs, list) or len(outputs) != len(events):
                got = f"{len(outputs)} answers" if isinstance(outputs, list) else type(outputs).__name__
                raise ValueError(f"a batched handler returns a list of {len(events)} answers, not {got}")
        except Exception as error:
            traceback.print_exc()
            for place, context in zip(places, contexts, strict=True):
                results[place] = answers.raised(items[place].kind, error, self._code_dir, context.aws_request_id)
            return
        for place, output, context in zip(places, outputs, contexts, strict=True):
            try:
                results[place] = answers.value(output)
            except Exception as error:  # what is not JSON is the misfortune of its own caller
                traceback.print_exc()
                results[place] = answers.raised(items[place].kind, error, self._code_dir, context.aws_request_id)
