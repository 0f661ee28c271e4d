"""A sandbox driver without sandboxes: the port's contract in virtual time.

It needs only `schedule(delay_s, callback)`: the heap of a `World`, or an event loop's `call_later`. It keeps to the
port exactly, and asserts that whoever drives it does: a Fork before Raised(BARE) or a second Run is a bug of the core.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

from rewarm import wire
from rewarm.errors import FunctionError, InstanceDied, OutOfMemory, RewarmError, SandboxFailed, StartFailed
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey, Revision
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.sandbox.port import Node, Sink

State = SandboxState
Schedule = Callable[[float, Callable[[], None]], object]


class Outcome(enum.Enum):
    """What user code does with a request. The gravest of a batch happens to all of it, except ERROR."""

    OK = "ok"
    ERROR = "error"  # raises: this request is answered with a function error
    DIES = "dies"  # crashes while it holds the batch
    EXITS = "exits"  # ends its process, as if that were success
    EATS_MEMORY = "eats memory"  # is killed for it
    HANGS = "hangs"  # never comes back


Behave = Callable[[Request], Outcome]
_GRAVEST = (Outcome.HANGS, Outcome.EATS_MEMORY, Outcome.EXITS, Outcome.DIES)


@dataclass(slots=True)
class Seconds:
    """How long each step takes. 0: reported before `carry_out` returns. inf: never done."""

    bare: float = 0.0
    zygote: float = 0.2  # from nothing
    zygote_fork: float = 0.1  # from a living ancestor
    fork: float = 0.005
    user: float = 0.05
    ready: float = 0.01
    run: float = 0.004  # a batch of any size
    row: float = 0.001  # and this for each request in it
    exit: float = 0.002
    restore: float = 0.02  # of an instance from its snapshot
    sleep: float = 1.0  # to make that


class _Box:
    """One sandbox: how far it got and what it is busy with."""

    def __init__(self, effect: m.RaiseBare | m.Restore) -> None:
        self.id = effect.sandbox_id
        self.name = "nobody"  # until Fork says whose it is
        self.state = State.ABSENT
        self.step = False  # something is on its way
        self.key: LangKey | None = None
        self.batch: list[Request] | None = None
        self.destroyed = False


class _Zygote:
    def __init__(self, key: LangKey, parent: LangKey | None) -> None:
        self.key = key
        self.parent = parent
        self.alive = False
        self.dropped = False


class FakeDriver:
    """A SandboxDriver whose user code is `behave` and whose time is `schedule`'s.

    `starts` says why a revision's code does not come up (None: it does), `langs` the same of a zygote, `sleeps` why no
    snapshot of it can be made and `restores` why an instance is lost while it wakes, though the snapshot is whole. The
    effect number `fail_at` (from 1, counted in `carried_out`) fails as a machine in trouble does.
    """

    name = "fake"

    def __init__(
        self,
        schedule: Schedule,
        seconds: Seconds | None = None,
        behave: Behave = lambda request: Outcome.OK,
        *,
        starts: Callable[[Revision], RewarmError | None] = lambda revision: None,
        langs: Callable[[LangKey], RewarmError | None] = lambda key: None,
        sleeps: Callable[[Revision], RewarmError | None] = lambda revision: None,
        restores: Callable[[Revision], RewarmError | None] = lambda revision: None,
        fail_at: int | None = None,
    ) -> None:
        self.seconds = seconds if seconds is not None else Seconds()
        self.behave = behave
        self.starts = starts
        self.langs = langs
        self.sleeps = sleeps
        self.restores = restores
        self.fail_at = fail_at
        self.carried_out = 0
        self.disk: dict[str, int] = {}  # bytes of the snapshot of each revision that has one, by its digest
        self.damaged: set[str] = set()  # those of them that are found to be when they are read
        self.disk_bytes = 64 << 20  # of each that is made
        self.ran: list[Request] = []  # every request that user code has seen, in order
        self._schedule = schedule
        self._boxes: dict[int, _Box] = {}
        self._zygotes: dict[LangKey, _Zygote] = {}
        self._making: dict[str, object] = {}  # by digest; which of several orders it is
        self._ids: set[int] = set()

    def attach(self, sink: Sink) -> None:
        self._sink = sink

    def pids(self) -> dict[Node, int]:
        """Nothing here has a process."""
        return {}

    def drain_log(self, sandbox_id: int) -> None:
        """Nobody here writes anything."""

    @property
    def living(self) -> set[Node]:
        """Every sandbox and zygote that is not gone."""
        return {*self._boxes, *self._zygotes}

    async def close(self) -> None:
        self._making.clear()  # what is half made is nothing; what is whole stays on disk
        for box in list(self._boxes.values()):
            self._exited(box, None)
        for zygote in list(self._zygotes.values()):
            zygote.dropped = True
            self._lang_exited(zygote, None)

    def kill(self, node: Node, error: RewarmError | None = None) -> None:
        """It dies now, by itself. No error if it is gone already."""
        if isinstance(node, LangKey):
            zygote = self._zygotes.get(node)
            if zygote is not None:
                self._lang_exited(zygote, error or StartFailed(f"the runtime {node} ended"))
        elif (box := self._boxes.get(node)) is not None:
            self._exited(box, error or InstanceDied(f"an instance of {box.name!r} crashed"))

    # ------------------------------------------------------------ effects

    def carry_out(self, effect: m.Effect) -> None:
        self.carried_out += 1
        fails = self.carried_out == self.fail_at
        if isinstance(effect, m.RaiseLang):
            self._raise_lang(effect, fails)
        elif isinstance(effect, m.DropLang):
            self._drop_lang(effect)
        elif isinstance(effect, m.RaiseBare):
            self._raise_bare(effect, fails)
        elif isinstance(effect, m.Restore):
            self._restore(effect, fails)
        elif isinstance(effect, m.Sleep):
            self._sleep(effect.revision, fails)
        elif isinstance(effect, m.Forget):
            self._forget(effect.revision.digest)
        elif isinstance(effect, m.Reject | m.Pin | m.Prefetch):
            raise TypeError(f"{type(effect).__name__} is not for drivers")
        else:
            box = self._boxes.get(effect.sandbox_id)
            if box is None or box.destroyed:
                return  # the two crossed on the way
            if isinstance(effect, m.Destroy):
                self._destroy(box)
            elif isinstance(effect, m.Fork):
                self._fork(box, effect, fails)
            elif fails:
                self._exited(box, _broken())
            elif isinstance(effect, m.LoadUser):
                self._load_user(box, effect.revision)
            else:
                self._run(box, effect.requests)

    def _raise_bare(self, effect: m.RaiseBare, fails: bool) -> None:
        assert effect.sandbox_id not in self._ids, f"{effect} uses an id twice"
        self._ids.add(effect.sandbox_id)
        box = self._boxes[effect.sandbox_id] = _Box(effect)
        if fails:
            self._exited(box, _broken())
        else:
            self._climb(box, State.ABSENT, State.BARE, self.seconds.bare)

    def _fork(self, box: _Box, effect: m.Fork, fails: bool) -> None:
        box.name, box.key = effect.spec.name, effect.key
        zygote = self._zygotes.get(effect.key)
        there = zygote is not None and zygote.alive
        if there and not effect.key.forks:
            del self._zygotes[effect.key]  # it is no layer any more, whatever becomes of the sandbox
        if fails:
            self._exited(box, _broken())
        elif there:
            self._climb(box, State.BARE, State.LANG, self.seconds.fork)
        else:
            self._exited(box, SandboxFailed("an instance could not be forked: its runtime has just ended"))

    def _load_user(self, box: _Box, revision: Revision) -> None:
        error = self.starts(revision)
        if error is not None:
            assert box.state is State.LANG and not box.step, f"LoadUser of {box.id} in {box.state.value}"
            box.step = True
            self._after(box, self.seconds.user, lambda: self._exited(box, error))
            return
        self._climb(
            box, State.LANG, State.USER, self.seconds.user,
            then=lambda: self._climb(box, State.USER, State.READY, self.seconds.ready),
        )  # fmt: skip

    def _climb(
        self, box: _Box, start: SandboxState, to: SandboxState, seconds: float, then: Callable[[], None] | None = None
    ) -> None:
        assert box.state is start and not box.step, f"{to.value} asked of sandbox {box.id}, which is {box.state.value}"
        box.step = True

        def arrived() -> None:
            box.step = False
            box.state = to
            self._sink.post(m.Raised(box.id, to, seconds))
            if then is not None and self._boxes.get(box.id) is box and not box.destroyed:
                then()

        self._after(box, seconds, arrived)

    def _run(self, box: _Box, requests: list[Request]) -> None:
        assert box.state is State.READY and box.batch is None, f"Run on {box.id}, {box.state.value}, {box.batch}"
        assert requests, "an empty batch"
        box.batch = list(requests)
        self.ran += requests
        outcomes = [self.behave(request) for request in requests]
        run_s = self.seconds.run + self.seconds.row * len(requests)
        worst = next((outcome for outcome in _GRAVEST if outcome in outcomes), None)
        if worst is None:
            answers = [_answer(*pair) for pair in zip(requests, outcomes, strict=True)]
            self._after(box, run_s, lambda: self._done(box, answers, run_s))
        elif worst is not Outcome.HANGS:
            self._after(box, run_s, lambda: self._exited(box, _end(box.name, worst)))

    def _done(self, box: _Box, answers: list[wire.AnyAnswer], run_s: float) -> None:
        requests, box.batch = box.batch, None
        assert requests is not None
        self._sink.post(m.RunDone(box.id, run_s))
        self._sink.answer(requests, answers, int(run_s * 1e6))

    def _destroy(self, box: _Box) -> None:
        box.destroyed = True
        self._later(self.seconds.exit, lambda: self._exited(box, None))

    # ------------------------------------------------------------ snapshots

    def _restore(self, effect: m.Restore, fails: bool) -> None:
        assert effect.sandbox_id not in self._ids, f"{effect} uses an id twice"
        self._ids.add(effect.sandbox_id)
        digest = effect.revision.digest
        box = self._boxes[effect.sandbox_id] = _Box(effect)
        box.name, box.key = effect.revision.name, effect.revision.spec.lang_key
        error = _broken() if fails else self.restores(effect.revision)
        if digest not in self.disk or digest in self.damaged:
            error = SandboxFailed(f"the snapshot of {box.name!r} is damaged")
            self._after(box, self.seconds.restore, lambda: self._lose(box, digest, error))
        elif error is not None:
            self._after(box, self.seconds.restore, lambda: self._exited(box, error))
        else:
            self._climb(box, State.ABSENT, State.READY, self.seconds.restore)

    def _lose(self, box: _Box, digest: str, error: RewarmError) -> None:
        self._forget(digest)
        self._sink.post(m.SleepLost(digest, error))
        self._exited(box, error)

    def _sleep(self, revision: Revision, fails: bool) -> None:
        digest = revision.digest
        if digest in self.disk and digest not in self.damaged:
            self._slept(digest)
            return
        order = self._making[digest] = object()
        error = _broken() if fails else self.sleeps(revision) or self.starts(revision)

        def made() -> None:
            if self._making.get(digest) is not order:
                return  # it was told to forget it meanwhile
            del self._making[digest]
            if error is not None:
                self._sink.post(m.SleepLost(digest, error))
                return
            self.disk[digest] = self.disk_bytes
            self.damaged.discard(digest)
            self._slept(digest)

        self._later(self.seconds.sleep, made)

    def _slept(self, digest: str) -> None:
        cold_s = self.seconds.fork + self.seconds.user + self.seconds.ready
        restore_s = self.seconds.restore
        if not cold_s < math.inf or not restore_s < math.inf:  # a driver reports what it measured
            cold_s, restore_s = 1.0, 0.02
        self._sink.post(m.Slept(digest, SnapshotFacts(digest, self.disk[digest], restore_s, cold_s)))

    def _forget(self, digest: str) -> None:
        self._making.pop(digest, None)
        self.disk.pop(digest, None)
        self.damaged.discard(digest)

    # ------------------------------------------------------------ zygotes

    def _raise_lang(self, effect: m.RaiseLang, fails: bool) -> None:
        key = effect.key
        former = self._zygotes.get(key)
        assert former is None or former.dropped, f"RaiseLang of {key}, which is there"
        assert key.forks or effect.parent is None, f"{effect}: nothing is forked for this runtime"
        assert not key.vm_bytes or effect.parent is None, f"{effect}: a guest is no other's ancestor"
        parent = self._zygotes.get(effect.parent) if effect.parent is not None else None
        forked = parent is not None and parent.alive
        zygote = self._zygotes[key] = _Zygote(key, effect.parent if forked else None)
        seconds = self.seconds.zygote_fork if forked else self.seconds.zygote
        error = _broken() if fails else self.langs(key)
        if error is not None:
            self._later(0.0 if fails else seconds, lambda: self._lang_exited(zygote, error))
            return

        def raised() -> None:
            if self._zygotes.get(key) is zygote and not zygote.dropped:
                zygote.alive = True
                zygote.parent = None  # from here on its parent may go
                self._sink.post(m.LangRaised(key, seconds))

        self._later(seconds, raised)

    def _drop_lang(self, effect: m.DropLang) -> None:
        zygote = self._zygotes.get(effect.key)
        if zygote is not None and not zygote.dropped:
            zygote.dropped = True
            zygote.alive = False
            self._later(self.seconds.exit, lambda: self._lang_exited(zygote, None))

    # ------------------------------------------------------------ ends

    def _exited(self, box: _Box, error: RewarmError | None) -> None:
        if self._boxes.get(box.id) is box:
            del self._boxes[box.id]
            self._sink.post(m.Exited(box.id, None if box.destroyed else error))

    def _lang_exited(self, zygote: _Zygote, error: RewarmError | None) -> None:
        """What was being forked from it is lost, but a zygote if this one was told to end; what lives, lives on."""
        if self._zygotes.get(zygote.key) is not zygote:
            return
        del self._zygotes[zygote.key]
        for box in list(self._boxes.values()):
            if box.key == zygote.key and box.state is State.BARE and not box.destroyed:
                self._exited(box, SandboxFailed(f"an instance of {box.name!r} was lost while it was forked"))
        for child in list(self._zygotes.values()):
            if child.parent == zygote.key and not child.alive and not zygote.dropped:
                self._lang_exited(child, SandboxFailed(f"runtime {child.key} was lost while it was forked"))
        self._sink.post(m.LangExited(zygote.key, None if zygote.dropped else error))

    def _after(self, box: _Box, delay_s: float, step: Callable[[], None]) -> None:
        """`step` happens after `delay_s`, unless the sandbox is gone or on its way out by then."""

        def happens() -> None:
            if self._boxes.get(box.id) is box and not box.destroyed:
                step()

        self._later(delay_s, happens)

    def _later(self, delay_s: float, step: Callable[[], None]) -> None:
        if delay_s <= 0:
            step()
        elif delay_s < math.inf:
            self._schedule(delay_s, step)


def _broken() -> RewarmError:
    return SandboxFailed("the fake driver was told to fail here")


def _end(name: str, outcome: Outcome) -> RewarmError:
    if outcome is Outcome.EATS_MEMORY:
        return OutOfMemory(f"an instance of {name!r} was killed, most likely because memory ran out")
    how = "crashed" if outcome is Outcome.DIES else "ended its process with exit status 0"
    return InstanceDied(f"an instance of {name!r} {how}")


def _answer(request: Request, outcome: Outcome) -> wire.AnyAnswer:
    """The body of the request comes back."""
    if outcome is Outcome.ERROR:
        return wire.Answer(FunctionError.status, wire.FORM_JSON, 0, b"", b'{"code":"function_error"}')
    body = bytes(request.payload[2]) if isinstance(request.payload, tuple) else b"null"  # a wire.AnyItem
    return wire.Answer(200, wire.FORM_JSON, 0, b"", body)
