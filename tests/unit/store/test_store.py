from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import BadDefinition, HomeLocked, NotFound, SystemFault
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.store.store import Store

Deploy = Callable[..., tuple[Revision, bool]]
Spec = Callable[..., FunctionSpec]
Check = Callable[[Store], list[Revision]]


def test_a_deploy_splits_code_and_weights(store: Store, deploy: Deploy, check_whole: Check) -> None:
    revision, unchanged = deploy(store, "code", weights=b"weights")
    assert not unchanged
    code = Path(revision.code_dir)
    assert sorted(path.relative_to(code).as_posix() for path in code.rglob("*")) == ["app.py", "lib", "lib/util.py"]
    assert (code / "app.py").read_text() == "code"
    assert revision.weights_path is not None
    assert Path(revision.weights_path).name == "model.onnx"
    assert Path(revision.weights_path).read_bytes() == b"weights"
    assert (revision.weights_bytes, revision.created_at) == (7, 1_700_000_000.0)
    assert check_whole(store) == [revision] == [store.get("digits")] == store.history("digits")


def test_the_same_deploy_changes_nothing(store: Store, deploy: Deploy, check_whole: Check) -> None:
    first, _ = deploy(store)
    assert deploy(store) == (first, True)
    assert deploy(store, weights=b"other")[0].version == 2
    assert deploy(store, "other", weights=b"other")[0].version == 3
    assert deploy(store, "other", weights=None)[0].version == 4
    assert len(check_whole(store)) == 1


def test_a_changed_specification_is_a_new_revision(store: Store, make_spec: Spec) -> None:
    revisions = []
    for timeout_s in (1.0, 2.0):
        staged = store.stage()
        (staged / "app.py").write_text("code")
        revisions.append(store.deploy(staged, make_spec(timeout_s=timeout_s))[0])
    assert [revision.version for revision in revisions] == [1, 2]
    assert revisions[0].code_dir == revisions[1].code_dir


def test_functions_share_weights_on_disk(store: Store, deploy: Deploy) -> None:
    one, two = deploy(store, "1", "one", b"same")[0], deploy(store, "2", "two", b"same")[0]
    assert one.weights_path == two.weights_path


def test_weights_in_a_folder(store: Store, make_spec: Spec, check_whole: Check) -> None:
    staged = store.stage()
    (staged / "models").mkdir()
    (staged / "models" / "m.pt").write_bytes(b"w")
    (staged / "app.py").write_text("code")
    revision, _ = store.deploy(staged, make_spec(weights="models/m.pt"))
    assert Path(str(revision.weights_path)).name == "m.pt"
    assert check_whole(store) == [revision]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../outside", "models/../../outside", "link-out", "folder-out/outside"]
)
def test_weights_that_lead_out_are_refused(store: Store, make_spec: Spec, path: str) -> None:
    (store.home.tmp_dir / "outside").write_text("secret")
    staged = store.stage()
    (staged / "models").mkdir()
    (staged / "link-out").symlink_to("../outside")
    (staged / "folder-out").symlink_to("..")
    with pytest.raises(BadDefinition, match="leads out of the deployed folder"):
        store.deploy(staged, make_spec(weights=path))
    assert not staged.exists()


@pytest.mark.parametrize("path", ["model.onnx", "models", "inner-link", "app.py/x"])
def test_missing_weights_say_where_was_looked(store: Store, make_spec: Spec, path: str) -> None:
    staged = store.stage()
    (staged / "models").mkdir()
    (staged / "models" / "m.pt").write_text("")
    (staged / "app.py").write_text("")
    (staged / "inner-link").symlink_to("app.py")
    with pytest.raises(BadDefinition, match=r"not a file in the deployed folder, which holds app\.py, .*models/m\.pt"):
        store.deploy(staged, make_spec(weights=path))
    assert list(store.home.tmp_dir.iterdir()) == list(store.home.artifacts_dir.iterdir()) == []


def test_missing_weights_in_an_empty_or_a_large_folder(store: Store, make_spec: Spec) -> None:
    with pytest.raises(BadDefinition, match="which holds nothing"):
        store.deploy(store.stage(), make_spec(weights="m"))
    staged = store.stage()
    for number in range(20):
        (staged / f"{number:02}.py").write_text("")
    with pytest.raises(BadDefinition, match=r"07\.py, …$"):
        store.deploy(staged, make_spec(weights="m"))


def test_a_discarded_stage_is_gone_and_nothing_else_can_be(store: Store, make_spec: Spec, tmp_path: Path) -> None:
    staged = store.stage()
    store.discard(staged)
    store.discard(staged)
    assert not staged.exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    for path in (precious, store.home.tmp_dir, store.home.path):
        with pytest.raises(ValueError, match="was not staged"):
            store.discard(path)
        with pytest.raises(ValueError, match="was not staged"):
            store.deploy(path, make_spec())
    assert precious.is_dir()


def test_a_restart_finds_everything(tmp_path: Path, deploy: Deploy, check_whole: Check) -> None:
    with Store.open(tmp_path / "home") as store:
        deployed = [deploy(store, name, name)[0] for name in ("a", "b")]
        left = store.stage()
        with pytest.raises(HomeLocked):
            Store.open(tmp_path / "home")
    with Store.open(tmp_path / "home") as store:
        assert not left.exists()
        assert check_whole(store) == deployed
    store.close()


def _no_code(revision: Revision) -> None:
    Path(revision.code_dir).rename(Path(revision.code_dir).with_name("elsewhere"))


def _no_weights(revision: Revision) -> None:
    Path(str(revision.weights_path)).unlink()


def _cut_weights(revision: Revision) -> None:
    Path(str(revision.weights_path)).chmod(0o600)
    Path(str(revision.weights_path)).write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(_no_code, "is missing"), (_no_weights, "missing or has another size"), (_cut_weights, "another size")],
)
def test_missing_files_break_one_function_until_it_is_deployed_again(
    store: Store, deploy: Deploy, damage: Callable[[Revision], None], reason: str
) -> None:
    good = deploy(store, "good", "good", b"1")[0]
    bad = deploy(store, "bad", "bad", b"2")[0]
    damage(bad)
    assert store.revisions() == [good]
    (broken,) = store.broken()
    assert (broken.name, broken.version) == ("bad", 1)
    assert reason in broken.reason
    assert "deploy the function again" in broken.reason
    assert deploy(store, "bad", "bad", b"2") == (bad, True)
    assert store.revisions() == [bad, good]


def test_collect_keeps_the_current_and_the_previous_revision(store: Store, deploy: Deploy, check_whole: Check) -> None:
    for number in range(4):
        deploy(store, f"code {number}", weights=f"weights {number}".encode())
    deploy(store, "shared", "other", b"weights 0")
    assert store.unreferenced() == []
    gone = store.collect()
    assert {path.parent.name for path in gone} == {"artifacts", "weights"}
    assert len(gone) == 3, "code 0 and 1, weights 1; weights 0 are in use elsewhere"
    assert [revision.version for revision in store.history("digits")] == [4, 3]
    assert not any(path.exists() for path in gone)
    for revision in store.history("digits"):
        assert Path(revision.code_dir, "app.py").is_file()
        assert Path(str(revision.weights_path)).is_file()
    check_whole(store)
    assert store.collect() == []


def test_collect_spares_what_is_still_used(store: Store, deploy: Deploy) -> None:
    first, *_ = [deploy(store, f"code {number}", weights=f"weights {number}".encode())[0] for number in range(3)]
    assert store.collect([first.code_dir, Path(str(first.weights_path))]) == []
    assert Path(first.code_dir, "app.py").is_file() and Path(str(first.weights_path)).is_file()
    assert [revision.version for revision in store.history("digits")] == [3, 2]
    assert store.collect() == [Path(first.code_dir), Path(str(first.weights_path)).parent]


def test_a_removed_function_frees_its_files(store: Store, deploy: Deploy) -> None:
    deploy(store)
    store.remove("digits")
    assert store.revisions() == []
    for ask in (store.get, store.history, store.remove):
        with pytest.raises(NotFound):
            ask("digits")
    assert len(store.unreferenced()) == 2
    store.collect()
    assert list(store.home.artifacts_dir.iterdir()) == list(store.home.weights_dir.iterdir()) == []
    assert deploy(store)[0].version == 2


def test_a_closed_store_fails_typed(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "home")
    store.close()
    with pytest.raises(SystemFault):
        store.get("digits")


def test_threads_deploy_and_collect_beside_each_other(store: Store, deploy: Deploy, check_whole: Check) -> None:
    errors: list[Any] = []

    def work(name: str) -> None:
        try:
            for number in range(8):
                # All threads fight over the same few artifacts, which collect takes away again and again.
                deploy(store, f"code {number % 3}", name, f"weights {number % 2}".encode())
                store.collect()
                assert store.get(name).version == number + 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [revision.version for revision in check_whole(store)] == [8, 8, 8]
