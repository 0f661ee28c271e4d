"""The memory ledger: every byte that is kept for speed, on one account with one budget.

A node (a sandbox, a Bare or a zygote) is entered with an estimate when it is decided on and corrected by each
measurement (PSS, so pages shared between a zygote and its forks are counted once). It holds its bytes until it is gone;
from when it was told to end they are on their way back. What is pinned of a model is a node as well. The totals are the
sums of the entries at all times; `check` proves it.
"""

from __future__ import annotations

from collections.abc import Hashable


class Ledger:
    __slots__ = ("_entries", "_ending", "budget_bytes", "ending_bytes", "held_bytes")

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self.ending_bytes = 0  # the part of `held_bytes` that is about to come back
        self._entries: dict[Hashable, int] = {}
        self._ending: set[Hashable] = set()

    def enter(self, node: Hashable, resident_bytes: int) -> None:
        """Put `node` on the account, or correct what it holds."""
        more = resident_bytes - self._entries.get(node, 0)
        self.held_bytes += more
        if node in self._ending:
            self.ending_bytes += more
        self._entries[node] = resident_bytes

    def told_to_end(self, node: Hashable) -> None:
        """What `node` holds is about to come back. Once for a node on the account."""
        self._ending.add(node)
        self.ending_bytes += self._entries[node]

    def leave(self, node: Hashable) -> None:
        """Take `node` off the account; unknown nodes are no error (an exit may be reported twice)."""
        held = self._entries.pop(node, 0)
        self.held_bytes -= held
        if node in self._ending:
            self._ending.discard(node)
            self.ending_bytes -= held

    def of(self, node: Hashable) -> int:
        return self._entries.get(node, 0)

    def short_bytes(self, extra_bytes: int = 0) -> int:
        """How many bytes are missing to hold `extra_bytes` more; 0 if they fit.

        What is ending counts as free already: it holds its bytes for some milliseconds more, less than raising anything
        takes.
        """
        return max(0, extra_bytes - self.spare_bytes)

    @property
    def spare_bytes(self) -> int:
        """What fits, with what is ending counted as free; below 0 if the budget is exceeded."""
        return self.budget_bytes - self.held_bytes + self.ending_bytes

    def __contains__(self, node: Hashable) -> bool:
        return node in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def ending(self) -> frozenset[Hashable]:
        return frozenset(self._ending)

    def check(self) -> None:
        """Raises AssertionError unless the totals are the sums of their parts."""
        total = sum(self._entries.values())
        assert self.held_bytes == total, f"ledger says {self.held_bytes}, entries sum to {total}"
        ending = sum(self._entries[node] for node in self._ending)
        assert self.ending_bytes == ending, f"ledger says {self.ending_bytes} are ending, entries sum to {ending}"
