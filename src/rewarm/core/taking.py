"""Requests leave their queue for a batch. Those whose deadline has passed are answered and not run."""

from __future__ import annotations

from collections import deque

from rewarm.core import refusals
from rewarm.facts import messages as m
from rewarm.facts.messages import Effect
from rewarm.facts.request import Request
from rewarm.policy.batching.base import Dispatch, Pick


def take(queue: deque[Request], decision: Dispatch | Pick, now: float, out: list[Effect]) -> list[Request]:
    """What `decision` asks for: the oldest so many that are not late, or those at its places that are not."""
    batch: list[Request] = []
    if isinstance(decision, Pick):
        picked = [queue[place] for place in decision.places]
        for place in reversed(decision.places):
            del queue[place]
        for request in picked:
            if request.deadline_s <= now:
                out.append(m.Reject(request, refusals.late(request, now)))
            else:
                batch.append(request)
        return batch
    size = decision.size
    while queue and len(batch) < size:
        request = queue.popleft()
        if request.deadline_s <= now:
            out.append(m.Reject(request, refusals.late(request, now)))
        else:
            batch.append(request)
    return batch
