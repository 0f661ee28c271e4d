"""Word counts in the style of an AWS Lambda function; nothing here knows about rewarm.

The event is ``{"text": str}``, with an optional ``"top": int``: how many of the most frequent words to list,
0 to 100, 5 when left out.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
DEFAULT_TOP = 5
LARGEST_TOP = 100


def count(text: str, top: int) -> dict[str, Any]:
    """Count the characters, lines and words of ``text``; list its ``top`` commonest as [word, times]."""
    words = [word.lower() for word in WORD.findall(text)]
    tally = Counter(words)
    ranked = sorted(tally.items(), key=lambda item: (-item[1], item[0]))
    return {
        "characters": len(text),
        "lines": len(text.splitlines()),
        "words": len(words),
        "distinct_words": len(tally),
        "top": [[word, times] for word, times in ranked[:top]],
    }


def main(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Return the counts of ``event["text"]``, the request's id and the time left to it in milliseconds."""
    text = event.get("text") if isinstance(event, dict) else None
    if not isinstance(text, str):
        raise ValueError("the event needs a string called 'text'")
    top = event.get("top", DEFAULT_TOP)
    if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= LARGEST_TOP:
        raise ValueError(f"'top' must be a whole number from 0 to {LARGEST_TOP}")
    return {
        "counts": count(text, top),
        "request_id": context.aws_request_id,
        "remaining_ms": context.get_remaining_time_in_millis(),
    }
