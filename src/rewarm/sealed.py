"""JSON in one spelling, after its digest: {"digest":"<sha256 of what follows>","<name>":{…}} and a newline.

So not one changed byte of it goes unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_TAIL = b"}\n"


def seal(name: str, fields: Mapping[str, Any]) -> bytes:
    """Raises ValueError for numbers that JSON does not have."""
    body = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return _head(name, body) + body + _TAIL


def unseal(name: str, data: bytes) -> bytes | None:
    """The JSON that was sealed; None for any other bytes. A digest is no signature: the caller looks what is in it."""
    body = data[len(_head(name, b"")) : -len(_TAIL)]
    return body if data == _head(name, body) + body + _TAIL else None


def _head(name: str, body: bytes) -> bytes:
    return f'{{"digest":"{hashlib.sha256(body).hexdigest()}","{name}":'.encode()
