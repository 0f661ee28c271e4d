"""Which tables to pin, whole, beside the front of what is streamed.

A table that is read on demand costs a first pass the wait for some rows, however large it is: its load time is not in
proportion to its bytes, and a prefix of bytes is no answer any more. With the tables S pinned the makespan of
`timeline` for F bytes of the front is still in closed form,

    T_S(F) = max( alone_S, ends_S - F / bandwidth )

where alone_S is all computing with the waits for the rows of the other tables, and ends_S is T_S(0) as the loader alone
would have it. Both come from one pass over the layers from the last to the first, in which what is known of the layers
from k on are three numbers: bytes of tables, alone, ends. Of two choices for these layers, one that is in none of the
three better can be forgotten, whatever comes before them; so a dynamic program over the layers keeps all choices of
tables that are the best for some budget (Nemhauser and Ullmann 1969, with one more number).

It is exact while no more than `CHOICES_MAX` are left: up to five tables always. More are thinned, by bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from rewarm.facts.pack import LayerFacts

CHOICES_MAX: Final = 32


class Share(NamedTuple):
    """What is pinned of a model: the layers `tables`, then the front of what is streamed, `size_bytes` together."""

    size_bytes: int = 0
    tables: tuple[int, ...] = ()


class Choice(NamedTuple):
    """Tables to pin, and what that makes of the first inference: see above."""

    size_bytes: int  # of the tables
    alone_s: float
    ends_s: float
    tables: tuple[int, ...] = ()

    def ttfi_s(self, front_bytes: int, bandwidth_bytes_s: float) -> float:
        """With so many bytes of the front pinned beside the tables."""
        return max(self.alone_s, self.ends_s - front_bytes / bandwidth_bytes_s)


class _Run(NamedTuple):
    """Layers between which there is nothing to choose: their load, their compute, and `timeline`'s makespan of them."""

    load_s: float
    alone_s: float
    ends_s: float
    table: int  # that comes before them, or -1


def choices(layers: Sequence[LayerFacts], bandwidth_bytes_s: float, setup_s: float = 0.0) -> list[Choice]:
    """Every choice of tables that is the best for some number of bytes, by bytes; the first has none.

    Tables of which nothing is known (`rows_s` 0), and those that have no bytes of their own, are in none.
    """
    states = [Choice(0, 0.0, 0.0)]
    for run in _runs(layers, bandwidth_bytes_s):
        states = [_before(state, run) for state in states]
        if run.table >= 0:
            layer = layers[run.table]
            waiting = [_with_table(state, layer.compute_s + layer.rows_s) for state in states]
            pinned = [_with_table(state, layer.compute_s, run.table, layer.size_bytes) for state in states]
            states = _thinned(_best(waiting + pinned))
    return [_after(state, setup_s) for state in states]


def choice_of(
    tables: Sequence[int], layers: Sequence[LayerFacts], bandwidth_bytes_s: float, setup_s: float = 0.0
) -> Choice:
    """Of just these tables, whether it is the best of anything or not."""
    state = Choice(0, 0.0, 0.0)
    for run in _runs(layers, bandwidth_bytes_s):
        state = _before(state, run)
        if run.table >= 0:
            layer = layers[run.table]
            state = _with_table(state, layer.compute_s + (0.0 if run.table in tables else layer.rows_s))
    size_bytes = sum(layers[table].size_bytes for table in tables)
    return _after(state._replace(size_bytes=size_bytes, tables=tuple(tables)), setup_s)


def _runs(layers: Sequence[LayerFacts], bandwidth_bytes_s: float) -> Iterator[_Run]:
    """From the last to the first."""
    load_s = alone_s = ends_s = 0.0
    for no in range(len(layers) - 1, -1, -1):
        layer = layers[no]
        if layer.on_demand and layer.rows_s > 0.0 and layer.size_bytes:
            yield _Run(load_s, alone_s, ends_s, no)
            load_s = alone_s = ends_s = 0.0
            continue
        load = 0.0 if layer.on_demand else layer.size_bytes / bandwidth_bytes_s
        alone_s += layer.compute_s + layer.rows_s
        ends_s = max(ends_s, alone_s) + load
        load_s += load
    yield _Run(load_s, alone_s, ends_s, -1)


def _before(state: Choice, run: _Run) -> Choice:
    """One more run before the layers of `state`."""
    ends_s = max(state.ends_s + run.load_s, state.alone_s + run.ends_s)
    return Choice(state.size_bytes, state.alone_s + run.alone_s, ends_s, state.tables)


def _with_table(state: Choice, compute_s: float, table: int = -1, table_bytes: int = 0) -> Choice:
    """A table before the layers of `state`, pinned if its number is given."""
    alone_s = state.alone_s + compute_s
    tables = (table, *state.tables) if table >= 0 else state.tables
    return Choice(state.size_bytes + table_bytes, alone_s, max(state.ends_s, alone_s), tables)


def _after(state: Choice, setup_s: float) -> Choice:
    """The same if nothing can run in the first `setup_s`."""
    alone_s = state.alone_s + setup_s
    return Choice(state.size_bytes, alone_s, max(state.ends_s, alone_s), state.tables)


def _best(states: list[Choice]) -> list[Choice]:
    """Those that no other is at least as good as in all three, by bytes."""
    states.sort()
    best: list[Choice] = []
    for state in states:  # none that follows has fewer bytes
        if not any(one.alone_s <= state.alone_s and one.ends_s <= state.ends_s for one in reversed(best)):
            best.append(state)
    return best


def _thinned(states: list[Choice]) -> list[Choice]:
    """The one without tables, and of each step of bytes the one that is done soonest."""
    if len(states) <= CHOICES_MAX:
        return states
    step_bytes = states[-1].size_bytes // (CHOICES_MAX - 1) + 1
    kept: dict[int, Choice] = {}
    for state in states[1:]:
        step = state.size_bytes // step_bytes
        if step not in kept or state.alone_s < kept[step].alone_s:
            kept[step] = state
    return [states[0], *kept.values()]
