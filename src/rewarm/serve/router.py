"""Which URLs are invocations, and of what. Everything else belongs to the admin application."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from rewarm import wire

_INVOKE = re.compile(r"/invoke/([^/]+)")
_V2 = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_LAMBDA = re.compile(r"/2015-03-31/functions/([^/]+)/invocations")
_CACHE_MAX = 4096
_CACHED_URL_BYTES_MAX = 256


class Target(NamedTuple):
    """Where an invocation goes. `kind` is a wire kind; `version` is empty unless the URL names one."""

    function: str
    kind: int
    version: str


class Router:
    """Remembers parsed URLs: the same few come again and again."""

    def __init__(self) -> None:
        self._known: dict[bytes, Target | None] = {}

    def match(self, url: bytes) -> Target | None:
        """The target of a POST to `url`, or None if it is not an invocation."""
        try:
            return self._known[url]
        except KeyError:
            target = parse(url)
            if len(url) <= _CACHED_URL_BYTES_MAX:
                if len(self._known) >= _CACHE_MAX:
                    self._known.clear()  # bounded against a caller that makes up URLs
                self._known[url] = target
            return target


def parse(url: bytes) -> Target | None:
    path, _, query = url.decode("latin-1").partition("?")
    if found := _INVOKE.fullmatch(path):
        return Target(unquote(found[1]), wire.KIND_JSON, "")
    if found := _V2.fullmatch(path):
        return Target(unquote(found[1]), wire.KIND_V2, unquote(found[2] or ""))
    if found := _LAMBDA.fullmatch(path):
        name, _, qualifier = _lambda_name(unquote(found[1])).partition(":")
        qualifier = parse_qs(query).get("Qualifier", [qualifier])[0]
        return Target(name, wire.KIND_LAMBDA, "" if qualifier == "$LATEST" else qualifier)
    return None


def _lambda_name(name: str) -> str:
    """AWS accepts a name, `name:qualifier`, and full or partial ARNs."""
    if name.startswith("arn:"):
        return ":".join(name.split(":")[6:])
    return name.split("function:", 1)[1] if "function:" in name else name
