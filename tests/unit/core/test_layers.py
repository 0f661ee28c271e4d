"""Bares, runtimes that are used up, prewarming and what policies hear: in virtual time."""

from __future__ import annotations

from rewarm.core.bares import IDLE_MAX
from rewarm.core.state import LayerState
from rewarm.errors import OverBudget, StartFailed
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, PolicySpec
from rewarm.facts.sandbox import Layer, StartKind
from rewarm.facts.sandbox import SandboxState as State
from rewarm.policy.keepalive.base import Drop, Keep, KeepaliveDecision, LayerView, Prewarm
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.policy.keepalive.none import NoKeepalive
from rewarm.testing import Outcome, Seconds, World

MB = 1 << 20
INSTANCE = 32 * MB  # what the core believes before anything is measured
RUNTIME = 24 * MB
START_S = 12_345.678
NODE = LangKey((), "nodejs")


def fixed(user_s: float, lang_s: float, bare_s: float) -> FixedKeepalive:
    return FixedKeepalive(user_s=user_s, lang_s=lang_s, bare_s=bare_s)


def world(mb: int = 1 << 20, **more: object) -> World:
    """User code does what the payload of a request says."""
    return World(mb * MB, start_s=START_S, behave=lambda request: Outcome(request.payload or "ok"), **more)  # type: ignore[arg-type]


def served(w: World, name: str, for_s: float = 2.0) -> None:
    """One request, all the way."""
    request = w.arrive(name)
    w.run_for(for_s)
    assert w.ok(request)


class Scripted:
    """A policy that says of each layer what it was told to, and writes down what it hears."""

    name = "scripted"
    watches_runs = True
    watches_ends = True

    def __init__(self, prewarm: Prewarm | None = None, **idle: KeepaliveDecision) -> None:
        self.warm = prewarm
        self.idle = idle
        self.asked: list[LayerView] = []
        self.ran: list[tuple[str, int, float]] = []
        self.gone: list[tuple[Layer, bool]] = []

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return self.warm

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        self.asked.append(layer)
        return self.idle.get(layer.layer.name.lower(), Drop())

    def on_run(self, spec: FunctionSpec, size: int, run_s: float, now: float) -> None:
        self.ran.append((spec.name, size, run_s))
        self.asked_before_run = len(self.asked)

    def on_gone(self, layer: LayerView, evicted: bool, now: float) -> None:
        self.gone.append((layer.layer, evicted))

    def priority(self, layer: LayerView, now: float) -> float:
        return layer.startup_s / max(layer.resident_bytes, 1)


# ---------------------------------------------------------------- Bares


def test_a_peeled_instance_leaves_a_fresh_bare_behind() -> None:
    w = world(keepalive=fixed(10.0, 20.0, 50.0), seconds=Seconds(bare=0.01))
    w.deploy("f")
    served(w, "f")
    used = w.ids("f")
    assert w.bares() == set()
    w.run_for(10.0)
    (bare,) = w.bares()
    assert bare not in used, "a used directory is given to nobody"
    assert [repr(b) for b in w.node.pool.bares.idle] == [f"<bare {bare} alive>"]
    w.run_for(60.0)
    assert not w.fake.living
    assert w.held_bytes == 0
    assert w.done(m.Destroy)[-1] == m.Destroy(bare, "keepalive")


def test_a_start_takes_the_bare_that_is_there() -> None:
    w = world(keepalive=fixed(10.0, 1.0, 500.0), seconds=Seconds(bare=1.0))
    w.deploy("f")
    w.deploy("g", preload=("numpy",))
    served(w, "f", 20.0)
    (bare,) = w.bares()
    request = w.arrive("g")
    assert w.ids("g") == [bare]
    assert w.states("g") == [State.BARE]
    w.run_for(0.9)
    assert w.ok(request), "it did not wait for a Bare to be made"
    assert request.start is StartKind.BARE
    w.run_for(5.0)
    assert len(w.bares()) == 1, "the place of what was taken is filled again"
    assert w.node.pool.bares.taken == 1


def test_what_a_bare_costs_is_measured() -> None:
    policy = Scripted(bare=Keep(100.0), user=Drop())
    w = world(keepalive=policy, seconds=Seconds(bare=0.25))
    w.deploy("f")
    served(w, "f")
    (bare,) = w.bares()
    view = policy.asked[-1]
    assert (view.layer, view.function, view.key, view.startup_s) == (Layer.BARE, None, LangKey(), 0.25)
    assert (view.resident_bytes, view.uses, view.others) == (0, 0, 0)
    w.tell(m.Measured(bare, 3 * MB))
    assert w.held_bytes == 3 * MB
    served(w, "f")
    assert policy.asked[-1].resident_bytes == 3 * MB
    assert w.held_bytes == 3 * MB * len(w.bares())


def test_keeping_nothing_keeps_no_bare() -> None:
    w = world(keepalive=NoKeepalive())
    w.deploy("f")
    served(w, "f")
    assert not w.fake.living


def test_there_are_never_many_bares() -> None:
    w = world(keepalive=Scripted(user=Drop(), bare=Keep(None)))
    w.deploy("f")
    for _ in range(3 * IDLE_MAX):
        w.tell(m.Load("f"))
        w.run_for(1.0)
    assert 1 <= len(w.bares()) <= IDLE_MAX
    w.deploy("many", max_instances=2 * IDLE_MAX)
    w.fake.seconds.run = 10.0
    for _ in range(2):
        w.burst("many", 40)
        w.run_for(300.0)
        assert len(w.bares()) == IDLE_MAX


def test_only_a_window_leaves_a_bare_behind() -> None:
    w = world(keepalive=fixed(10.0, 10.0, 500.0))
    w.deploy("f")
    served(w, "f")
    w.deploy("f")  # outdated
    served(w, "f")
    w.fake.kill(w.ids("f")[0])
    served(w, "f")
    w.tell(m.Unload("f"))
    served(w, "f")
    w.tell(m.Removed("f"))
    w.run_for(5.0)
    assert w.bares() == set()


def test_a_bare_that_fails_or_dies_is_forgotten() -> None:
    w = world(keepalive=fixed(10.0, 1.0, 500.0))
    w.deploy("f")
    served(w, "f")
    w.fake.fail_at = w.fake.carried_out + 2  # after the instance's Destroy
    w.run_for(9.0)
    assert w.bares() == set()
    served(w, "f", 12.0)
    (bare,) = w.bares()
    w.fake.kill(bare)
    assert w.bares() == set()
    assert w.held_bytes == 0
    served(w, "f")


def test_a_bare_that_never_comes_up_is_stopped() -> None:
    w = world(keepalive=fixed(10.0, 1.0, 500.0))
    w.deploy("f")
    served(w, "f")
    w.fake.seconds.bare = float("inf")
    w.run_for(200.0)
    assert w.bares() == set()
    assert [effect.reason for effect in w.done(m.Destroy)] == ["keepalive", "start timeout"]


def test_a_bare_that_was_told_to_end_is_not_taken() -> None:
    w = world(keepalive=fixed(1.0, 1.0, 1.0), seconds=Seconds(exit=5.0))
    w.deploy("f")
    served(w, "f", 3.0)
    (bare,) = w.bares()
    assert w.node.pool.bares.layers[bare].state is LayerState.DYING
    assert w.node.handle(m.Raised(bare, State.BARE, 0.1), w.now) == []
    served(w, "f", 50.0)
    assert bare not in w.ids("f")


def test_a_window_of_a_bare_may_be_renewed() -> None:
    policy = Scripted(user=Drop(), bare=Keep(5.0))
    w = world(keepalive=policy)
    w.deploy("f")
    served(w, "f", 30.0)
    assert len(w.bares()) == 1
    assert len([view for view in policy.asked if view.layer is Layer.BARE]) > 5


def test_a_timer_of_a_bare_that_was_taken_means_nothing() -> None:
    w = world(keepalive=fixed(10.0, 1.0, 20.0))
    w.deploy("f", keepalive=PolicySpec("none"))
    w.deploy("g")
    served(w, "f")
    (bare,) = w.bares()
    request = w.arrive("g", payload="hangs")
    w.run_for(30.0)
    assert w.states("g") == [State.BUSY] and w.ids("g") == [bare]
    assert request not in w.answers


def test_the_end_takes_the_bares_along() -> None:
    w = world(keepalive=fixed(1.0, 1.0, 500.0), seconds=Seconds(exit=1.0))
    w.deploy("f")
    w.deploy("g")
    served(w, "f", 5.0)
    assert len(w.bares()) == 1
    served(w, "g", 0.9)
    w.tell(m.Draining())
    w.run_for(5.0)
    assert len(w.bares()) == 1, "what is drained leaves nothing new behind"
    w.tell(m.Draining(final=True))
    w.tell(m.Draining(final=True))
    w.run_for(5.0)
    assert w.bares() == set()
    assert w.done(m.Destroy)[-1].reason == "shutdown"


def test_a_bare_makes_room_like_every_layer_if_it_holds_anything() -> None:
    policy = Scripted(user=Drop(), lang=Drop(), bare=Keep(None))
    w = world(60, keepalive=policy)
    w.deploy("f")
    served(w, "f")
    (bare,) = w.bares()
    w.tell(m.Measured(bare, 20 * MB))
    request = w.arrive("f")
    w.run_for(2.0)
    assert w.ok(request)
    assert m.Destroy(bare, "memory") in w.effects
    assert (Layer.BARE, True) in policy.gone
    assert w.node.pool.evictions == 1


def test_a_bare_that_holds_nothing_is_left_alone() -> None:
    w = world(60, keepalive=Scripted(user=Drop(), lang=Keep(None), bare=Keep(None)))
    w.deploy("f")
    w.deploy("g", preload=("numpy",))
    served(w, "f")
    (bare,) = w.bares()
    request = w.arrive("g")
    assert [effect.reason for effect in w.done(m.DropLang)] == ["memory"]
    assert w.ids("g") == [bare]
    w.run_for(2.0)
    assert w.ok(request)


def test_no_bare_without_room() -> None:
    w = world(60, keepalive=fixed(10.0, 500.0, 500.0))
    w.deploy("f")
    served(w, "f")
    w.node.pool.bares.bytes.add(40 * MB)
    w.run_for(20.0)
    assert w.bares() == set()


def test_who_wants_memory_waits_for_a_bare_that_holds_it() -> None:
    policy = Scripted(user=Drop(), lang=Drop(), bare=Keep(None))
    w = world(60, keepalive=policy)
    w.deploy("f")
    served(w, "f")
    w.fake.seconds.bare = 1.0
    w.fake.kill(*w.bares())
    w.node.pool.bares.bytes.add(20 * MB)
    served(w, "f", 1.5)
    (rising,) = w.node.pool.bares.layers.values()
    assert rising.state is LayerState.RISING
    request = w.arrive("f")
    assert request not in w.answers
    w.run_for(5.0)
    assert w.ok(request)


# ---------------------------------------------------------------- runtimes that are used up


def test_a_runtime_that_does_not_fork_becomes_the_instance() -> None:
    w = world(keepalive=NoKeepalive())
    w.deploy("n", runtime="nodejs")
    request = w.arrive("n")
    assert [type(effect) for effect in w.effects] == [m.RaiseLang, m.RaiseBare]
    assert w.held_bytes == INSTANCE, "its estimate includes the runtime"
    w.run_for(0.26)
    assert w.langs() == set()
    assert w.held_bytes == INSTANCE
    w.run_for(5.0)
    assert w.ok(request)
    assert request.start is StartKind.COLD
    assert w.done(m.Fork)[0].key == NODE
    assert not w.fake.living


def test_a_spare_is_raised_for_the_next_and_runs_out() -> None:
    w = world(keepalive=fixed(10.0, 30.0, 0.0))
    w.deploy("n", runtime="nodejs", max_instances=2)
    w.deploy("o", runtime="nodejs")
    served(w, "n")
    assert w.langs() == {NODE}
    assert w.held_bytes == INSTANCE + RUNTIME
    request = w.arrive("o")
    assert w.held_bytes == 2 * INSTANCE + RUNTIME, "two instances and, once more, a spare"
    w.run_for(2.0)
    assert request.start is StartKind.LANG and w.ok(request)
    assert (len(w.done(m.RaiseLang)), w.langs()) == (3, {NODE})
    assert w.node.pool.runtimes.of(NODE).reuses == 1
    w.run_for(100.0)
    assert not w.fake.living
    assert w.done(m.DropLang)[-1].reason == "keepalive"
    assert w.held_bytes == 0


def test_a_peeled_instance_is_a_reason_to_ask_for_a_spare() -> None:
    w = world(keepalive=fixed(30.0, 10.0, 0.0))
    w.deploy("n", runtime="nodejs")
    served(w, "n", 20.0)
    assert w.langs() == set()
    w.run_for(11.0)
    assert w.langs() == {NODE}
    w.run_for(11.0)
    assert w.langs() == set()


def test_several_who_wait_get_one_runtime_each() -> None:
    w = world(keepalive=NoKeepalive(), seconds=Seconds(run=1.0))
    for name in "abc":
        w.deploy(name, runtime="nodejs")
    requests = [w.arrive(name) for name in "abc"]
    w.run_for(0.1)
    assert len(w.done(m.RaiseLang)) == 1, "one at a time"
    w.run_for(5.0)
    assert w.ok(*requests)
    kinds = [type(effect) for effect in w.effects if isinstance(effect, m.RaiseLang | m.Fork)]
    assert kinds == [m.RaiseLang, m.Fork] * 3
    assert not w.fake.living


def test_a_runtime_waits_for_the_sandbox_it_is_meant_for() -> None:
    w = world(keepalive=fixed(1.0, 0.5, 0.0), seconds=Seconds(bare=2.0))
    w.deploy("n", runtime="nodejs")
    request = w.arrive("n")
    w.run_for(1.9)
    assert w.langs() == {NODE}, "its window does not run while somebody is about to take it"
    w.run_for(5.0)
    assert w.ok(request)


def test_a_runtime_whose_sandbox_is_gone_is_a_spare() -> None:
    w = world(keepalive=fixed(1.0, 5.0, 0.0), seconds=Seconds(bare=1.0))
    w.deploy("n", runtime="nodejs")
    w.arrive("n")
    w.run_for(0.5)
    w.tell(m.Removed("n"))
    w.run_for(0.5)
    assert w.held_bytes == RUNTIME
    w.run_for(10.0)
    assert not w.fake.living


def test_a_runtime_that_dies_fails_those_who_wait_for_it() -> None:
    w = world(keepalive=NoKeepalive())
    w.deploy("n", runtime="nodejs")
    lost = w.arrive("n")
    w.run_for(0.1)
    w.fake.kill(NODE)
    assert w.rejected(lost, StartFailed)
    served(w, "n")


def test_who_comes_while_a_spare_ends_gets_the_next_one() -> None:
    w = world(keepalive=fixed(1000.0, 1.0, 0.0), seconds=Seconds(exit=1.0))
    w.deploy("n", runtime="nodejs")
    w.deploy("o", runtime="nodejs")
    served(w, "n", 1.6)
    (lang,) = w.node.pool.langs.values()
    assert lang.state is LayerState.DYING
    served(w, "o", 5.0)
    assert len(w.done(m.RaiseLang)) >= 3


def test_no_spare_without_room() -> None:
    w = world(50, keepalive=fixed(10.0, 100.0, 0.0))
    w.deploy("n", runtime="nodejs")
    served(w, "n")
    assert w.langs() == set()
    w.run_for(20.0)
    assert w.langs() == {NODE}, "once the instance is gone"
    served(w, "n")


def test_a_spare_makes_room() -> None:
    w = world(80, keepalive=fixed(1.0, 1000.0, 0.0))
    w.deploy("n", runtime="nodejs")
    w.deploy("f")
    served(w, "n", 5.0)
    assert w.held_bytes == RUNTIME
    w.tell(m.Measured(NODE, 40 * MB))
    served(w, "f")
    assert m.DropLang(NODE, "memory") in w.effects


def test_no_runtime_for_the_next_when_the_server_closes() -> None:
    w = world(keepalive=fixed(10.0, 10.0, 10.0))
    w.deploy("n", runtime="nodejs", max_instances=2)
    w.deploy("o", runtime="nodejs")
    w.arrive("n")
    w.arrive("o")
    w.tell(m.Draining(final=True))
    w.run_for(0.5)
    assert len(w.done(m.RaiseLang)) == 1
    assert w.langs() == set()


def test_too_large_for_the_budget_with_a_runtime_that_is_used_up() -> None:
    w = world(31)
    w.deploy("n", runtime="nodejs")
    assert w.rejected(w.arrive("n"), OverBudget)


# ---------------------------------------------------------------- prewarming


def test_prewarm_has_so_many_instances_and_no_more() -> None:
    w = world(keepalive=Scripted(Prewarm(5.0, 3), user=Keep(None), lang=Keep(None)))
    w.deploy("f", max_instances=4)
    served(w, "f", 4.0)
    assert len(w.ids("f")) == 1
    w.run_for(3.0)
    assert w.states("f") == [State.READY] * 3
    w.run_for(100.0)
    assert len(w.ids("f")) == 3


def test_prewarm_keeps_to_the_limit_of_instances() -> None:
    w = world(keepalive=Scripted(Prewarm(5.0, 9), user=Keep(None), lang=Keep(None)))
    w.deploy("f", max_instances=2)
    served(w, "f", 20.0)
    assert len(w.ids("f")) == 2


def test_prewarm_has_one_idle() -> None:
    w = world(keepalive=Scripted(Prewarm(5.0), user=Keep(None), lang=Keep(None)))
    w.deploy("f", max_instances=3, timeout_s=500.0)
    w.arrive("f", payload="hangs")
    w.run_for(10.0)
    assert sorted(state.value for state in w.states("f")) == ["busy", "ready"]


def test_a_later_prewarm_takes_the_place_of_the_former() -> None:
    policy = Scripted(Prewarm(5.0), user=Drop())
    w = world(keepalive=policy)
    w.deploy("f")
    w.arrive("f")
    w.run_for(3.0)
    policy.warm = Prewarm(20.0)
    w.arrive("f")
    w.run_for(15.0)
    assert len(w.done(m.LoadUser)) == 2, "not at the first moment"
    w.run_for(8.0)
    assert len(w.done(m.LoadUser)) == 3


def test_what_was_raised_ahead_is_asked_about_before_its_first_use() -> None:
    policy = Scripted(Prewarm(5.0), user=Drop())
    w = world(keepalive=policy)
    w.deploy("f")
    served(w, "f", 4.0)
    policy.idle["user"] = Keep(100.0)
    w.run_for(3.0)
    users = [view for view in policy.asked if view.layer is Layer.USER]
    assert users[-1].uses == 0
    assert w.arrive("f").start is StartKind.WARM


def test_prewarm_takes_away_only_what_is_worth_less() -> None:
    """Both functions' policy is one that ranks by start-up seconds per byte."""
    policy = Scripted(user=Keep(None), lang=Keep(None))
    w = world(100, keepalive=policy)
    w.deploy("dear")
    w.deploy("cheap")
    w.deploy("next")
    w.fake.seconds.user = 3.0
    served(w, "next", 10.0)
    w.tell(m.Unload("next"))
    served(w, "dear", 10.0)
    w.fake.seconds.user = 0.001
    served(w, "cheap", 10.0)
    pool, names = w.node.pool, ("dear", "cheap", "next")
    w.fn("next").user_s.value = 0.0005
    pool.prewarm(w.fn("next"), w.now + 1.0)
    w.run_for(5.0)
    assert [len(w.ids(name)) for name in names] == [1, 1, 0], "it is worth less than either"
    w.fn("next").user_s.value = 1.0
    pool.prewarm(w.fn("next"), w.now + 1.0)
    w.run_for(5.0)
    assert [len(w.ids(name)) for name in names] == [1, 0, 1]


def test_prewarm_never_asks_for_more_than_there_is() -> None:
    w = world(60, keepalive=Scripted(Prewarm(5.0, 3), user=Keep(None), lang=Keep(None)))
    w.deploy("f", max_instances=3)
    served(w, "f", 20.0)
    assert len(w.ids("f")) == 1
    assert w.held_bytes <= 60 * MB


# ---------------------------------------------------------------- what policies hear


def test_a_policy_hears_of_runs_before_idleness() -> None:
    policy = Scripted(user=Keep(None), lang=Keep(None))
    w = world(keepalive=policy)
    w.deploy("f", batching=PolicySpec("dynamic", {"max_size": 4, "max_wait_s": 0.0}))
    w.burst("f", 3)
    w.run_for(5.0)
    ((name, size, run_s),) = policy.ran
    assert (name, size) == ("f", 3) and run_s > 0
    assert policy.asked_before_run == 0
    assert policy.asked[0].uses == 3


def test_a_policy_hears_of_windows_and_evictions_and_of_nothing_else() -> None:
    policy = Scripted(user=Keep(5.0), lang=Keep(5.0))
    w = world(keepalive=policy)
    w.deploy("f")
    served(w, "f")
    w.tell(m.Unload("f"))
    served(w, "f")
    w.fake.kill(w.ids("f")[0])
    w.run_for(2.0)
    assert policy.gone == []
    served(w, "f", 3.0)
    policy.idle.clear()
    w.run_for(20.0)
    assert policy.gone == [(Layer.USER, False), (Layer.LANG, False)]


def test_evictions_are_told_layer_by_layer() -> None:
    policy = Scripted(user=Keep(None), lang=Keep(None))
    w = world(60, keepalive=policy)
    w.deploy("f")
    w.deploy("g", preload=("numpy",))
    served(w, "f")
    served(w, "g")
    assert policy.gone == [(Layer.USER, True), (Layer.LANG, True)]


def test_a_function_with_a_policy_of_its_own_is_not_the_servers_business() -> None:
    policy = Scripted(lang=Keep(None))
    w = world(keepalive=policy)
    w.deploy("f", keepalive=PolicySpec("fixed", {"user_s": 1.0}))
    served(w, "f", 5.0)
    assert policy.ran == [] and policy.gone == []
    assert {view.layer for view in policy.asked} == {Layer.LANG, Layer.BARE}


def test_a_policy_knows_how_many_others_there_are() -> None:
    policy = Scripted(Prewarm(1.0, 3), user=Keep(None), lang=Keep(None))
    w = world(keepalive=policy)
    w.deploy("f", max_instances=3)
    served(w, "f", 5.0)
    assert [view.others for view in policy.asked if view.layer is Layer.USER] == [0, 2, 2]


# ---------------------------------------------------------------- what is needed


def test_a_dropped_zygote_is_part_of_what_a_start_needs() -> None:
    """The zygote is still there but on its way out: its bytes come back, and it has to be raised again."""
    w = world(120, keepalive=fixed(1000.0, 0.0, 0.0), seconds=Seconds(exit=50.0))
    w.deploy("other", timeout_s=500.0)
    w.deploy("f", preload=("a",))
    w.arrive("other", payload="hangs")
    w.run_for(2.0)
    served(w, "f", 1.0)
    need = w.node.pool.need_bytes(w.fn("f"))
    assert need == INSTANCE
    w.tell(m.Unload("f"))
    w.run_for(50.5)
    (lang,) = (lang for key, lang in w.node.pool.langs.items() if key.packages)
    assert lang.state is LayerState.DYING
    assert w.node.pool.need_bytes(w.fn("f")) == INSTANCE + RUNTIME


def test_a_timer_of_one_that_is_ending_means_nothing() -> None:
    w = world(keepalive=NoKeepalive(), seconds=Seconds(exit=100.0))
    w.deploy("f")
    served(w, "f", 90.0)  # the limit of its start passes
    assert w.states("f") == [State.DYING]
    assert len(w.done(m.Destroy)) == 1
