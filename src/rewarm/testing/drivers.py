"""What everyone who drives the core must do with its effects and timers, live or in virtual time, as one call.

    await check_driver(lambda setting: SimulatedHost(setting))
    await check_driver(lambda setting: LiveHost(setting, a_new_folder()))

Beside what each check says of itself, `Record` watches throughout that each effect is answered by the events that
`sandbox/port.py` promises and by no others, that time never goes back, and that no Tick comes for nothing. At the end
nothing lives and every request has one answer. AssertionError says what was expected.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from rewarm.errors import DeadlineExceeded, NotFound, Unavailable
from rewarm.facts import messages as m
from rewarm.facts.sandbox import SandboxState
from rewarm.testing.hosts import Host, Setting
from rewarm.testing.record import ROUNDING_S

State = SandboxState
Check = Callable[[Host], Awaitable[None]]

_START = [
    m.RaiseBare, State.BARE, m.Fork, State.LANG, m.LoadUser, State.USER, State.READY, m.Run, m.RunDone
]  # fmt: skip
_END = [m.Destroy, m.Exited]


async def _served(host: Host, count: int) -> None:
    await host.until(lambda: len(host.record.served) >= count, f"{count} served requests")


async def _peeled(host: Host) -> None:
    """No layer is left, by the record and by the driver's own account."""
    await host.until(lambda: not host.record.living, "the end of every layer")
    assert not host.living(), f"ended, and still there: {host.living()}"


def _happened(host: Host, kind: type) -> bool:
    return bool(host.record.all(kind))


def _at(host: Host, kind: type, layer: object = None) -> float:
    """When the first of this kind was, of this layer."""
    return host.record.entries[host.record.place(kind, layer)].at_s  # type: ignore[arg-type]


def _in_time(host: Host, at_s: float, due_s: float, what: str) -> None:
    late_s = at_s - due_s
    assert -ROUNDING_S <= late_s <= host.late_s + ROUNDING_S, f"{what}: {late_s:+.6f} s from when it was due"


# ---------------------------------------------------------------- effects


async def each_effect_is_answered_in_its_order(host: Host) -> None:
    """RaiseBare, Fork, LoadUser, Run and Destroy of a sandbox, RaiseLang and DropLang of its runtime."""
    host.deploy("f")
    host.submit("f")
    await _peeled(host)
    record, key = host.record, host.setting.key
    assert record.words(1) == _START + _END, record.words(1)
    assert record.words(key) == [m.RaiseLang, m.LangRaised, m.DropLang, m.LangExited], record.words(key)


async def what_is_gone_is_left_alone(host: Host) -> None:
    """An effect for a layer that has ended, or that nobody heard of, crossed with its end: no event comes of it."""
    host.deploy("f")
    host.submit("f")
    await _peeled(host)
    record, spec, key = host.record, host.setting.spec("f"), host.setting.key
    (_, load), (_, run) = record.all(m.LoadUser)[0], record.all(m.Run)[0]
    events = [what for _, what in record.entries if isinstance(what, m.Event)]
    for sandbox_id in (1, 99):
        for effect in (
            m.Fork(sandbox_id, key, spec), m.LoadUser(sandbox_id, load.revision), m.Run(sandbox_id, run.requests),
            m.Destroy(sandbox_id, "test"), m.DropLang(key, "test"),
        ):  # fmt: skip
            host.carry_out(effect)
    await host.wait(0.05)
    assert [what for _, what in record.entries if isinstance(what, m.Event)] == events
    host.submit("f")
    await _served(host, 2)


async def an_end_crosses_a_rise(host: Host) -> None:
    """What was told to end while it rose ends once, without an error, and is not heard of again. Nobody is lost."""
    host.deploy("f")
    for step in (m.RaiseBare, m.Fork, m.LoadUser):
        host.submit("f")
        await host.until(partial(_happened, host, step), step.__name__)
        host.tell(m.Removed("f"))
        host.deploy("f")
    await host.until(lambda: len(host.record.all(m.Exited)) == 3, "three ends")
    errors = [reject.error for _, reject in host.record.all(m.Reject)]
    assert [type(error) for error in errors] == [NotFound] * 3, errors
    host.submit("f")
    await _served(host, 1)


async def a_runtime_that_is_dropped_while_it_rises(host: Host) -> None:
    """It ends, and is not heard of again, not even when one of its key is raised after it."""
    key, record = host.setting.key, host.record
    host.carry_out(m.RaiseLang(key, None))
    host.carry_out(m.DropLang(key, "test"))
    await host.until(lambda: bool(record.all(m.LangExited)), "its end")
    host.carry_out(m.RaiseLang(key, None))
    await host.until(lambda: bool(record.all(m.LangRaised)), "the next one")
    await host.wait(0.05)
    host.carry_out(m.DropLang(key, "test"))
    await _peeled(host)
    end = [m.DropLang, m.LangExited]
    assert record.words(key) == [m.RaiseLang, *end, m.RaiseLang, m.LangRaised, *end], record.words(key)


async def a_runtime_that_does_not_fork_is_used_up(host: Host) -> None:
    """No end of it is told once a Fork took it, and the next one may be raised in the same breath."""
    for name in ("f", "g"):
        host.deploy(name)
        host.submit(name)
    await _served(host, 2)
    await _peeled(host)
    words = host.record.words(host.setting.key)
    assert words == 2 * [m.RaiseLang, m.LangRaised, m.Fork], words
    assert len(host.record.all(m.Exited)) == 2


async def a_spare_runtime_ends_when_told(host: Host) -> None:
    """What the policy keeps in place of one that was used up is a layer like others."""
    host.deploy("f")
    host.submit("f")
    await _served(host, 1)
    await _peeled(host)
    words = host.record.words(host.setting.key)
    assert words[:3] == [m.RaiseLang, m.LangRaised, m.Fork], words
    assert words[3:], "no spare was kept"
    spare = [m.RaiseLang, m.LangRaised, m.DropLang, m.LangExited]
    assert words[3:] == spare * (len(words) // len(spare)), words


async def requests_wait_in_line(host: Host) -> None:
    """However many come at one moment, one start serves them, each once and in the order in which they came."""
    host.deploy("f")
    for _ in range(4):
        host.submit("f")
    await _served(host, 4)
    assert len(host.record.all(m.LoadUser)) == 1
    assert [request for _, run in host.record.all(m.Run) for request in run.requests] == host.record.served
    arrivals = [request.arrived_s for request in host.record.served]
    assert arrivals == sorted(arrivals), "served in another order than they came in"


async def the_core_hears_of_one_thing_at_a_time(host: Host) -> None:
    """What comes in the midst of an effect waits until everything that was decided with it is carried out."""

    def come() -> None:
        host.submit("f", within_s=30.0)
        host.tell(m.Flush("f"))

    host.deploy("f")
    host.when(m.RaiseLang, come)
    host.submit("f")
    await _served(host, 2)
    decided = max(host.record.place(m.RaiseLang), host.record.place(m.RaiseBare))
    assert decided < host.record.place(m.Arrived) < host.record.place(m.Flush)


# ---------------------------------------------------------------- timers


async def layers_are_peeled_from_the_top(host: Host) -> None:
    """With no request in between: User, then Lang, then the Bare that was left, each when its window is over."""
    host.deploy("f")
    host.submit("f")
    await _peeled(host)
    record, setting = host.record, host.setting
    bare = max(bare.sandbox_id for _, bare in record.all(m.RaiseBare))
    user_s, lang_s, bare_s = _at(host, m.Destroy, 1), _at(host, m.DropLang), _at(host, m.Destroy, bare)
    assert bare > 1, "no Bare was kept in place of the one that was used"
    assert user_s < lang_s < bare_s, f"{user_s}, {lang_s}, {bare_s}"
    _in_time(host, user_s, _at(host, m.RunDone) + setting.user_s, "User")
    _in_time(host, lang_s, _at(host, m.Exited, 1) + setting.lang_s, "Lang")
    _in_time(host, bare_s, _at(host, m.Raised, bare) + setting.bare_s, "Bare")


async def a_wake_up_is_kept(host: Host) -> None:
    """Where nothing else happens the next thing the core hears of is a Tick, not before it asked for one."""
    host.deploy("f")
    host.submit("f")
    await _served(host, 1)
    heard = len(host.record.entries)
    wakeup_s = host.node.next_wakeup_s()
    assert wakeup_s is not None, "the window of an idle instance"
    await host.until(lambda: len(host.record.entries) > heard, "a Tick")
    at_s, tick = host.record.entries[heard]
    assert isinstance(tick, m.Tick), f"{tick}, where only time passed"
    _in_time(host, at_s, wakeup_s, "Tick")


async def an_earlier_timer_comes_first(host: Host) -> None:
    """A deadline armed after a long window, and before it: the request is answered then, not at the next arrival, not
    when the run before it is done."""
    host.deploy("idle")
    host.submit("idle")
    await _served(host, 1)
    host.deploy("f")
    host.submit("f")
    await _served(host, 2)
    host.submit("f", 0.6)
    host.submit("f", within_s=0.2)
    await host.until(lambda: bool(host.record.refused), "the deadline")
    ((at_s, reject),) = host.record.all(m.Reject)
    assert isinstance(reject.error, DeadlineExceeded), reject
    _in_time(host, at_s, reject.request.deadline_s, "deadline")
    assert len(host.record.served) == 2, "answered when the run before it was done"
    assert not host.record.all(m.Destroy)
    await _served(host, 3)


async def an_outgrown_timer_is_served_once(host: Host) -> None:
    """Each use moves the end of the window; a wake-up for the old end changes nothing, and starts no second loop."""
    host.deploy("f")
    uses = 3
    for count in range(1, uses + 1):
        host.submit("f")
        await _served(host, count)
        await host.wait(0.3 * host.setting.user_s)
    await _peeled(host)
    last_s = host.record.all(m.RunDone)[-1][0]
    _in_time(host, _at(host, m.Destroy), last_s + host.setting.user_s, "the last window")
    ticks = len(host.record.all(m.Tick))
    windows = uses + 1  # of the instance, and one of its runtime
    assert 1 <= ticks <= windows, f"{ticks} Ticks for {windows} windows"
    await host.wait(host.setting.user_s)
    assert len(host.record.all(m.Tick)) == ticks, "Ticks where no layer is left"


async def a_function_that_comes_late_does_not_turn_the_clock_back(host: Host) -> None:
    """Deployed is an event like any other: it has the moment at which it happens."""
    host.deploy("f")
    host.submit("f")
    await _served(host, 1)
    began_s = host.now_s
    host.deploy("late")
    assert began_s <= host.record.all(m.Deployed)[-1][0] <= host.now_s
    host.submit("late")
    await _served(host, 2)


# ---------------------------------------------------------------- the end


async def draining_serves_what_has_come(host: Host) -> None:
    """What runs and what is queued is served, what comes is refused, and nothing is raised in place of what ends."""
    host.deploy("f")
    host.submit("f", 0.1)
    host.submit("f")
    await host.until(lambda: bool(host.record.all(m.Run)), "a run")
    host.tell(m.Draining())
    host.submit("f")
    await host.until(lambda: not host.record.waiting(), "an answer to each")
    assert [type(reject.error) for _, reject in host.record.all(m.Reject)] == [Unavailable]
    assert len(host.record.served) == 2
    await _peeled(host)
    assert len(host.record.all(m.RaiseBare)) == 1


async def the_end_leaves_nothing(host: Host) -> None:
    """Whatever is busy, idle, rising or queued. `close` checks it."""
    for name in ("f", "g"):
        host.deploy(name)
        host.submit(name)
    await _served(host, 2)
    host.deploy("h")
    host.submit("h")
    await host.until(lambda: len(host.record.all(m.LoadUser)) >= 3, "an instance on its way up")
    host.submit("f", 0.1)
    host.submit("f")


_NONE_KEPT = Setting(user_s=0.0, lang_s=0.0)
_ALL_KEPT = Setting(bare_s=0.4)

#: Every check by its name, with what it is to be run in.
DRIVER_CHECKS: dict[str, tuple[Check, Setting]] = {
    check.__name__: (check, setting)
    for check, setting in (
        (each_effect_is_answered_in_its_order, Setting()),
        (what_is_gone_is_left_alone, _NONE_KEPT),
        (an_end_crosses_a_rise, Setting(lang_s=1.0, load_s=0.1)),
        (a_runtime_that_is_dropped_while_it_rises, _NONE_KEPT),
        (a_runtime_that_does_not_fork_is_used_up, replace(_NONE_KEPT, forks=False)),
        (a_spare_runtime_ends_when_told, Setting(forks=False)),
        (requests_wait_in_line, Setting()),
        (the_core_hears_of_one_thing_at_a_time, Setting()),
        (layers_are_peeled_from_the_top, _ALL_KEPT),
        (a_wake_up_is_kept, Setting()),
        (an_earlier_timer_comes_first, Setting(user_s=30.0)),
        (an_outgrown_timer_is_served_once, Setting(user_s=0.3)),
        (a_function_that_comes_late_does_not_turn_the_clock_back, Setting()),
        (draining_serves_what_has_come, _ALL_KEPT),
        (the_end_leaves_nothing, _ALL_KEPT),
    )
}


async def check_driver(make_host: Callable[[Setting], Host], *, only: str | None = None) -> None:
    """Takes a fresh host through each of DRIVER_CHECKS, or through the one named `only`."""
    for name, (check, setting) in DRIVER_CHECKS.items():
        if only in (None, name):
            host = make_host(setting)
            try:
                await check(host)
            finally:
                await host.close()
