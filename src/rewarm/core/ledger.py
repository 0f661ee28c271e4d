"""The memory ledger: every byte that is kept for speed, on one account with one budget.

A node (a sandbox or a zygote) is entered with an estimate when it is decided on and corrected by each measurement
(PSS, so pages shared between a zygote and its forks are counted once). The total is the sum of the entries at all
times; `check` proves it.
"""

from __future__ import annotations

from collections.abc import Hashable


class Ledger:
    __slots__ = ("_entries", "budget_bytes", "held_bytes")

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self._entries: dict[Hashable, int] = {}

    def enter(self, node: Hashable, resident_bytes: int) -> None:
        """Put `node` on the account, or correct what it holds."""
        self.held_bytes += resident_bytes - self._entries.get(node, 0)
        self._entries[node] = resident_bytes

    def leave(self, node: Hashable) -> None:
        """Take `node` off the account; unknown nodes are no error (an exit may be reported twice)."""
        self.held_bytes -= self._entries.pop(node, 0)

    def of(self, node: Hashable) -> int:
        return self._entries.get(node, 0)

    def short_bytes(self, extra_bytes: int = 0) -> int:
        """How many bytes are missing to hold `extra_bytes` more; 0 if they fit."""
        return max(0, self.held_bytes + extra_bytes - self.budget_bytes)

    def __contains__(self, node: Hashable) -> bool:
        return node in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def check(self) -> None:
        """Raises AssertionError unless the total is the sum of its parts."""
        total = sum(self._entries.values())
        assert self.held_bytes == total, f"ledger says {self.held_bytes}, entries sum to {total}"
