from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator

import pytest

from rewarm.define import Dynamic
from rewarm.errors import HomeTooNew, NotFound, SystemFault
from rewarm.facts.function import FunctionSpec, PolicySpec, Tensor
from rewarm.store.artifacts import StoredWeights
from rewarm.store.home import Home
from rewarm.store.registry import SCHEMA_VERSION, Broken, Registry, connect

Spec = Callable[..., FunctionSpec]
WEIGHTS = StoredWeights("5a", "m.onnx", 7)


@pytest.fixture
def registry(home: Home) -> Iterator[Registry]:
    opened = Registry.open(home)
    yield opened
    opened.close()


def test_a_revision_comes_back_as_it_was_put(home: Home, registry: Registry, make_spec: Spec) -> None:
    spec = make_spec(
        slo_s=0.2,
        batching=Dynamic(max_size=5, max_wait="300ms"),
        keepalive=PolicySpec("fixed", {"ttl_s": 3}),
        preload=("numpy", "torch"),
        weights="models/m.onnx",
        inputs=(("image", Tensor("float32", (-1, 784))), ("more", None)),
        env=(("A", "1"),),
    )
    put, unchanged = registry.put(spec, "d1", "c1", WEIGHTS, 12.5)
    assert not unchanged
    assert registry.get("digits") == put
    assert (put.spec, put.digest, put.version, put.created_at) == (spec, "d1", 1, 12.5)
    assert put.code_dir == str(home.path / "artifacts" / "c1")
    assert put.weights_path == str(home.path / "weights" / "5a" / "m.onnx")
    assert put.weights_bytes == 7


def test_versions_count_changes(registry: Registry, make_spec: Spec) -> None:
    assert registry.put(make_spec(), "d1", "c1", None, 1.0)[0].version == 1
    again, unchanged = registry.put(make_spec(), "d1", "c1", None, 2.0)
    assert (again.version, again.created_at, unchanged) == (1, 1.0, True)
    assert registry.put(make_spec(), "d2", "c2", None, 3.0)[0].version == 2
    back, unchanged = registry.put(make_spec(), "d1", "c1", None, 4.0)
    assert (back.version, unchanged) == (3, False)
    assert [revision.version for revision in registry.revisions("digits")] == [3, 2, 1]
    assert registry.get("digits").version == 3


def test_functions_do_not_mix(registry: Registry, make_spec: Spec) -> None:
    for name in ("b", "a"):
        registry.put(make_spec(name), "d1", "c1", None, 1.0)
    found, broken = registry.current()
    assert ([revision.name for revision in found], broken) == (["a", "b"], [])
    registry.remove("a")
    assert [revision.name for revision in registry.current()[0]] == ["b"]


def test_what_is_not_there_is_not_found(registry: Registry) -> None:
    for ask in (registry.get, registry.revisions, registry.remove):
        with pytest.raises(NotFound, match="no function 'nope'"):
            ask("nope")


def test_a_version_number_never_means_other_code(registry: Registry, make_spec: Spec) -> None:
    registry.put(make_spec(), "d1", "c1", None, 1.0)
    registry.remove("digits")
    with pytest.raises(NotFound):
        registry.get("digits")
    with pytest.raises(NotFound):
        registry.remove("digits")
    revision, unchanged = registry.put(make_spec(), "d1", "c1", None, 2.0)
    assert (revision.version, unchanged) == (2, False)


def test_prune_keeps_the_current_revision_and_the_one_before(registry: Registry, make_spec: Spec) -> None:
    for name, count in (("once", 1), ("twice", 2), ("often", 5), ("gone", 2)):
        for number in range(count):
            registry.put(make_spec(name), f"d{number}", f"{name}{number}", WEIGHTS, 1.0)
    registry.remove("gone")
    registry.prune()
    registry.prune()
    assert registry.used() == ({"once0", "twice0", "twice1", "often3", "often4"}, {"5a"})
    assert registry.get("often").version == 5


def test_it_survives_a_restart_and_is_durable(home: Home, make_spec: Spec) -> None:
    first = Registry.open(home)
    put, _ = first.put(make_spec(), "d1", "c1", WEIGHTS, 1.0)
    first.close()
    first.close()
    second = Registry.open(home)
    assert second.get("digits") == put
    pragmas = {name: second._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}
    second.close()


def test_a_newer_schema_asks_for_an_upgrade(home: Home) -> None:
    Registry.open(home).close()
    with sqlite3.connect(home.registry_path) as raw:
        raw.execute("UPDATE schema_version SET version = ?", (SCHEMA_VERSION + 1,))
    raw.close()
    with pytest.raises(HomeTooNew, match="upgrade rewarm"):
        Registry.open(home)


def test_a_file_that_is_no_registry_is_named(home: Home) -> None:
    home.registry_path.write_bytes(b"not a database" * 1000)
    with pytest.raises(SystemFault, match=r"registry\.db.*put back a copy"):
        Registry.open(home)


def test_a_registry_that_cannot_be_opened_is_named(home: Home) -> None:
    home.registry_path.mkdir()
    with pytest.raises(SystemFault, match="check the permissions"):
        Registry.open(home)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "digits"}'])
def test_a_damaged_specification_breaks_one_function_only(registry: Registry, make_spec: Spec, text: str) -> None:
    for name in ("bad", "good"):
        registry.put(make_spec(name), "d1", "c1", None, 1.0)
    registry._db.execute("UPDATE revisions SET spec_json = ? WHERE name = 'bad'", (text,))
    found, broken = registry.current()
    assert [revision.name for revision in found] == ["good"]
    assert [(one.name, one.version) for one in broken] == [("bad", 1)]
    assert isinstance(broken[0], Broken)
    assert broken[0].reason


def test_a_damaged_specification_is_mended_by_a_deploy(registry: Registry, make_spec: Spec) -> None:
    registry.put(make_spec(), "d1", "c1", None, 1.0)
    registry._db.execute("UPDATE revisions SET spec_json = '{'")
    revision, unchanged = registry.put(make_spec(), "d1", "c1", None, 2.0)
    assert (revision.version, unchanged) == (2, False)
    assert registry.get("digits") == revision


def test_a_full_disk_says_so(home: Home, make_spec: Spec) -> None:
    def tiny(path: str) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA max_page_count=8")
        return connection

    registry = Registry.open(home, tiny)
    kept, _ = registry.put(make_spec(), "d0", "c", None, 0.0)
    with pytest.raises(SystemFault, match="free some space"):
        registry.put(make_spec(env=(("A", "x" * 100_000),)), "d1", "c", None, 0.0)
    assert registry.get("digits") == kept
    registry.close()
