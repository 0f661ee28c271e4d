from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import SystemFault, Unavailable, WeightsCorrupt
from rewarm.facts.function import FunctionSpec, PolicySpec, Revision, Tensor
from rewarm.store.disk import Disk
from rewarm.store.packs import key_of, pack_key
from rewarm.store.store import Store
from rewarm.weights.format import ALIGN_BYTES, DataFile, Index, LayerEntry, Pack, TensorEntry, verify
from rewarm.weights.writer import LayerIn, TensorIn, write_pack

Deploy = Callable[..., tuple[Revision, bool]]
MakeSpec = Callable[..., FunctionSpec]

PAGE = ALIGN_BYTES
SHA = "0" * 64
BASE = {"embed": b"e" * 3 * PAGE, "block": b"b" * PAGE, "head": b"h" * 100}


def stage(store: Store, key: str, tensors: dict[str, bytes], *, anew: bool = False) -> Path:
    """What the packing process leaves: one layer a tensor. `anew`: it knows of nothing that is there."""
    layers = [
        LayerIn(name, (TensorIn(name, "U8", (len(content),), lambda content=content: content),))  # type: ignore[misc]
        for name, content in tensors.items()
    ]
    folder = store.stage()
    known = {} if anew else store.known_tensors()
    write_pack(folder, store.home.tensors_dir, layers, key=key, order="traced", source_sha256=SHA, known=known)
    return folder


def publish(store: Store, key: str, tensors: dict[str, bytes], *, anew: bool = False) -> Pack:
    return store.publish_pack(stage(store, key, tensors, anew=anew))


def stage_graph(store: Store, key: str, data: bytes = b"d" * 9000, graph: bytes = b"graph") -> Path:
    """What packing an ONNX model leaves."""
    folder = store.stage()
    (folder / "weights.data").write_bytes(data)
    (folder / "model.onnx").write_bytes(graph)
    sha256 = hashlib.sha256(data).hexdigest()
    index = Index(
        key=key,
        kind="onnx",
        order="traced",
        source_sha256=SHA,
        files=(DataFile(f"{sha256}.data", len(data), sha256),),
        tensors={"w": TensorEntry("U8", (len(data),), 0, 0, len(data), SHA)},
        layers=(LayerEntry("all", ("w",), False, 0.0),),
        tied={},
        graph=DataFile("model.onnx", len(graph), hashlib.sha256(graph).hexdigest()),
    )
    (folder / "index.json").write_bytes(index.dumps())
    return folder


def publish_one(store: Store, graph: bool) -> Pack:
    return store.publish_pack(stage_graph(store, "one") if graph else stage(store, "one", BASE))


def content(pack: Pack) -> dict[str, bytes]:
    found = {name: (pack.path(e.file), e.begin, e.end) for name, e in pack.index.tensors.items()}
    return {name: path.read_bytes()[begin:end] for name, (path, begin, end) in found.items()}


def data_files(store: Store) -> set[str]:
    return {path.name for path in store.home.tensors_dir.iterdir()}


def opened(store: Store, key: str) -> Pack:
    pack = store.sound_pack(key)
    assert pack is not None
    return pack


# ---------------------------------------------------------------- keys


def test_a_key_stands_for_what_is_packed(make_spec: MakeSpec) -> None:
    spec = make_spec(weights="model.safetensors")
    same = dataclasses.replace(
        spec, name="other", memory_bytes=1 << 31, timeout_s=1.0, batching=PolicySpec("mbs"), max_instances=7
    )
    key = pack_key(spec, "code", "weights")
    assert pack_key(same, "code", "weights") == key
    others = [
        pack_key(spec, "code2", "weights"),
        pack_key(spec, "code", "weights2"),
        pack_key(dataclasses.replace(spec, weights="model.onnx"), "code", "weights"),
        pack_key(dataclasses.replace(spec, entry="app:Other"), "code", "weights"),
        pack_key(dataclasses.replace(spec, inputs=(("x", Tensor("float32", (-1, 4))),)), "code", "weights"),
        pack_key(dataclasses.replace(spec, env=(("DEPTH", "2"),)), "code", "weights"),
    ]
    assert len({key, *others}) == 7


def test_the_key_of_a_revision(store: Store, deploy: Deploy) -> None:
    revision, _ = deploy(store, weights=b"weights")
    code_sha = Path(revision.code_dir).name
    assert key_of(revision) == pack_key(revision.spec, code_sha, hashlib.sha256(b"weights").hexdigest())
    assert key_of(deploy(store, name="plain", weights=None)[0]) is None


# ---------------------------------------------------------------- arriving


def test_a_pack_arrives_whole_and_read_only(store: Store) -> None:
    pack = publish(store, "base", BASE)
    assert content(pack) == BASE
    assert pack.folder == store.home.pack_dir("base")
    assert pack.folder.stat().st_mode & 0o777 == 0o555
    assert {path.stat().st_mode & 0o777 for path in (pack.path(0), pack.folder / "index.json")} == {0o444}
    assert list(store.home.tmp_dir.iterdir()) == []
    assert opened(store, "base") == pack


def test_the_pack_of_a_revision(store: Store, deploy: Deploy) -> None:
    revision, _ = deploy(store)
    assert store.pack(revision) is None
    key = key_of(revision)
    assert key is not None
    assert store.pack(revision) is None
    pack = publish(store, key, BASE)
    assert store.pack(revision) == pack
    os.truncate(pack.path(0), 10)
    with pytest.raises(WeightsCorrupt, match="deploy the function again"):
        store.pack(revision)
    assert store.pack(deploy(store, name="plain", weights=None)[0]) is None


def test_a_variant_shares_the_file_of_its_base(store: Store) -> None:
    base = publish(store, "base", BASE)
    tuned = publish(store, "tuned", BASE | {"head": b"H" * 100})
    assert tuned.path(0).samefile(base.path(0))
    assert tuned.path(1).stat().st_size == PAGE + 100
    assert content(tuned) == BASE | {"head": b"H" * 100}
    assert data_files(store) == {base.path(0).name, tuned.path(1).name}


def test_the_same_weights_under_another_key_share_the_file(store: Store) -> None:
    base = publish(store, "base", BASE)
    inode = base.path(0).stat().st_ino
    assert publish(store, "twin", BASE).path(0).stat().st_ino == inode
    assert publish(store, "third", BASE, anew=True).path(0).stat().st_ino == inode
    assert data_files(store) == {base.path(0).name}
    assert list(store.home.tmp_dir.iterdir()) == []
    assert not list(store.home.packs_dir.rglob("*.safetensors"))


def test_a_whole_pack_that_is_there_wins(store: Store) -> None:
    first = publish(store, "base", BASE)
    inode = (first.folder / "index.json").stat().st_ino
    again = publish(store, "base", BASE | {"head": b"other"})
    assert again == first
    assert (first.folder / "index.json").stat().st_ino == inode


def test_a_graph_has_its_data_beside_it(store: Store) -> None:
    pack = store.publish_pack(stage_graph(store, "one"))
    assert sorted(path.name for path in pack.folder.iterdir()) == ["index.json", "model.onnx", "weights.data"]
    assert {path.stat().st_mode & 0o777 for path in pack.folder.iterdir()} == {0o444}
    shared = store.home.tensors_dir / pack.index.files[0].name
    assert pack.path(0).samefile(shared)
    other = store.publish_pack(stage_graph(store, "two", graph=b"another"))
    assert other.path(0).samefile(shared)
    verify(other)
    assert store.known_tensors() == {}  # its bytes lie as onnxruntime wants them


def test_a_graph_where_the_disk_has_no_links(tmp_path: Path) -> None:
    class NoLinks(Disk):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

    with Store.open(tmp_path / "home", disk=NoLinks()) as store:
        pack = store.publish_pack(stage_graph(store, "one"))
        verify(pack)
        assert store.sound_pack("one") == pack
        assert data_files(store) == set()


# ---------------------------------------------------------------- what is not what it says


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def _change_file(folder: Path) -> None:
    _flip(next(folder.glob("*.safetensors")), PAGE)


def _change_index(folder: Path) -> None:
    _flip(folder / "index.json", 300)


def _lie_about_a_tensor(folder: Path) -> None:
    index = Index.loads((folder / "index.json").read_bytes())
    lie = {name: entry._replace(sha256=SHA) for name, entry in index.tensors.items()}
    (folder / "index.json").write_bytes(dataclasses.replace(index, tensors=lie).dumps())


def _lie_about_a_size(folder: Path) -> None:
    index = Index.loads((folder / "index.json").read_bytes())
    file = index.files[0]
    lie = (file._replace(size_bytes=file.size_bytes + 1),)
    (folder / "index.json").write_bytes(dataclasses.replace(index, files=lie).dumps())


@pytest.mark.parametrize(
    "harm",
    [
        _change_file,
        _change_index,
        _lie_about_a_tensor,
        _lie_about_a_size,
        lambda folder: (folder / "index.json").unlink(),
        lambda folder: (folder / "stranger").write_bytes(b""),
        lambda folder: (folder / "strange").mkdir(),
    ],
)
def test_what_is_not_as_its_index_says_is_not_taken(store: Store, harm: Callable[[Path], None]) -> None:
    folder = stage(store, "base", BASE)
    harm(folder)
    with pytest.raises(WeightsCorrupt):
        store.publish_pack(folder)
    for kept in (store.home.tmp_dir, store.home.packs_dir, store.home.tensors_dir):
        assert list(kept.iterdir()) == []


def test_a_pack_cannot_claim_the_bytes_of_another(store: Store) -> None:
    """Else whoever packs the real tensor afterwards would be given these bytes."""
    publish(store, "base", BASE)
    folder = stage(store, "liar", BASE)
    index = Index.loads((folder / "index.json").read_bytes())
    lie = index.tensors | {"block": index.tensors["block"]._replace(begin=index.tensors["embed"].begin, end=2 * PAGE)}
    (folder / "index.json").write_bytes(dataclasses.replace(index, tensors=lie).dumps())
    with pytest.raises(WeightsCorrupt, match="another tensor"):
        store.publish_pack(folder)


@pytest.mark.parametrize("name", ["weights.data", "model.onnx"])
def test_a_graph_that_is_not_what_it_says_is_not_taken(store: Store, name: str) -> None:
    folder = stage_graph(store, "one")
    _flip(folder / name, 0)
    with pytest.raises(WeightsCorrupt, match=name):
        store.publish_pack(folder)
    assert data_files(store) == set()


@pytest.mark.parametrize("name", ["weights.data", "model.onnx"])
def test_a_graph_that_lacks_a_file_is_not_taken(store: Store, name: str) -> None:
    folder = stage_graph(store, "one")
    (folder / name).unlink()
    with pytest.raises(WeightsCorrupt, match="is missing"):
        store.publish_pack(folder)


def test_a_link_is_no_data_file(store: Store, tmp_path: Path) -> None:
    folder = stage(store, "base", BASE)
    file = next(folder.glob("*.safetensors"))
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WeightsCorrupt, match="not a file of its index"):
        store.publish_pack(folder)


def test_a_known_file_that_was_collected_meanwhile_is_an_advice_to_pack_again(store: Store) -> None:
    publish(store, "base", BASE)
    folder = stage(store, "tuned", BASE | {"head": b"H"})
    store.collect()  # no revision has either key
    with pytest.raises(Unavailable, match="deploy the function again"):
        store.publish_pack(folder)
    assert data_files(store) == set()


def test_a_pack_under_another_key_is_not_opened(store: Store) -> None:
    pack = publish(store, "base", BASE)
    pack.folder.chmod(0o755)
    pack.folder.rename(store.home.pack_dir("other"))
    assert store.sound_pack("other") is None
    assert list(store.home.packs_dir.iterdir()) == []


# ---------------------------------------------------------------- damaged later


SEEN_BY_SIZE: list[Callable[[Pack], object]] = [
    lambda pack: os.truncate(pack.path(0), PAGE),
    lambda pack: pack.path(0).unlink(),
    lambda pack: _flip(pack.folder / "index.json", 200),
    lambda pack: (pack.folder / "index.json").unlink(),
]


@pytest.mark.parametrize("harm", SEEN_BY_SIZE)
@pytest.mark.parametrize("graph", [True, False])
def test_packing_again_mends(store: Store, harm: Callable[[Pack], object], graph: bool) -> None:
    pack = publish_one(store, graph)
    pack.folder.chmod(0o755)
    harm(pack)
    mended = publish_one(store, graph)
    assert mended == pack
    verify(mended)


@pytest.mark.parametrize("harm", [*SEEN_BY_SIZE, lambda pack: _flip(pack.path(0), -1)])
@pytest.mark.parametrize("graph", [True, False])
def test_a_damaged_pack_is_taken_away_once_it_is_looked_at(
    store: Store, harm: Callable[[Pack], object], graph: bool
) -> None:
    pack = publish_one(store, graph)
    pack.folder.chmod(0o755)
    harm(pack)
    assert store.sound_pack("one") is None
    assert not pack.folder.exists()
    assert publish_one(store, graph) == pack
    assert store.sound_pack("one") == pack
    assert data_files(store) == {pack.index.files[0].name}


def test_what_shares_a_damaged_file_is_refused_until_it_is_packed_again(store: Store) -> None:
    base = publish(store, "base", BASE)
    tuned_tensors = BASE | {"head": b"H"}
    publish(store, "tuned", tuned_tensors)
    _flip(base.path(0), PAGE)
    assert store.sound_pack("base") is None
    assert store.known_tensors() == {}
    assert store.sound_pack("tuned") is None
    assert content(publish(store, "base", BASE)) == BASE
    assert content(publish(store, "tuned", tuned_tensors)) == tuned_tensors
    verify(opened(store, "tuned"))


def test_looking_at_no_pack_makes_none(store: Store) -> None:
    assert store.sound_pack("none") is None
    assert store.known_tensors() == {}


def test_a_damaged_file_is_not_referred_to_by_a_new_pack(store: Store) -> None:
    base = publish(store, "base", BASE)
    _flip(base.path(0), PAGE)
    tuned = BASE | {"head": b"H"}
    with pytest.raises(Unavailable, match="deploy the function again"):
        publish(store, "tuned", tuned)
    assert not base.path(0).exists()
    verify(publish(store, "tuned", tuned))
    verify(publish(store, "base", BASE))


# ---------------------------------------------------------------- going


@pytest.fixture
def deploy_packed(deploy: Deploy) -> Callable[..., Revision]:
    """Deploys a function and publishes its pack."""

    def run(store: Store, name: str, text: str, tensors: dict[str, bytes]) -> Revision:
        revision, _ = deploy(store, text, name, b"weights of " + text.encode())
        key = key_of(revision)
        assert key is not None
        publish(store, key, tensors)
        return revision

    return run


def test_packs_go_with_the_revisions_that_use_them(store: Store, deploy_packed: Callable[..., Revision]) -> None:
    revisions = [deploy_packed(store, "digits", f"{n}", BASE | {"head": b"%d" % n * PAGE}) for n in range(4)]
    assert len(data_files(store)) == 4
    store.collect()
    assert [store.pack(revision) is not None for revision in revisions] == [False, False, True, True]
    # The file of the first is gone with its pack, unless a later one refers to it: and all refer to its embedding.
    newest = store.pack(revisions[3])
    assert newest is not None
    verify(newest)
    assert data_files(store) == {
        file.name for n in (2, 3) for file in opened(store, str(key_of(revisions[n]))).index.files
    }
    assert len(data_files(store)) == 3
    assert store.unreferenced() == []
    store.remove("digits")
    assert set(store.home.packs_dir.iterdir()) | set(store.home.tensors_dir.iterdir()) <= set(store.unreferenced())
    store.collect()
    assert data_files(store) == set()
    assert list(store.home.packs_dir.iterdir()) == list(store.home.tmp_dir.iterdir()) == []


def test_a_shared_file_stays_as_long_as_one_pack_refers_to_it(
    store: Store, deploy_packed: Callable[..., Revision]
) -> None:
    deploy_packed(store, "base", "base", BASE)
    tuned = deploy_packed(store, "tuned", "tuned", BASE | {"head": b"H"})
    store.remove("base")
    store.collect()
    assert content(opened(store, str(key_of(tuned)))) == BASE | {"head": b"H"}
    assert len(data_files(store)) == 2


def test_a_file_stays_though_the_pack_that_needs_it_lacks_another(
    store: Store, deploy_packed: Callable[..., Revision]
) -> None:
    deploy_packed(store, "base", "base", BASE)
    tuned = store.pack(deploy_packed(store, "tuned", "tuned", BASE | {"head": b"H"}))
    assert tuned is not None
    tuned.path(1).unlink()
    store.remove("base")
    store.collect()
    assert tuned.path(0).exists()


def test_a_pack_in_use_is_spared_with_its_files(store: Store, deploy_packed: Callable[..., Revision]) -> None:
    revision = deploy_packed(store, "digits", "one", BASE)
    key = str(key_of(revision))
    store.remove("digits")
    gone = store.collect([store.home.pack_dir(key)])
    assert [path.parent for path in gone] == [store.home.artifacts_dir, store.home.weights_dir]
    assert content(opened(store, key)) == BASE
    store.collect()
    assert store.sound_pack(key) is None
    assert data_files(store) == set()


def test_the_pack_of_a_deploy_under_way_is_not_collected(store: Store, make_spec: MakeSpec) -> None:
    staged = store.stage()
    (staged / "app.py").write_text("code")
    (staged / "model.pt").write_bytes(b"weights")

    def pack(what: Any) -> None:
        publish(store, what.key, BASE)
        store.collect()

    revision, _ = store.deploy(staged, make_spec(weights="model.pt"), pack=pack)
    assert content(opened(store, str(key_of(revision)))) == BASE
    store.remove("digits")
    store.collect()
    assert data_files(store) == set()


def test_graphs_go_too(store: Store) -> None:
    store.publish_pack(stage_graph(store, "one"))
    store.collect([store.home.pack_dir("one")])
    assert len(data_files(store)) == 1
    store.collect()
    assert data_files(store) == set()
    assert list(store.home.packs_dir.iterdir()) == []


def test_what_a_killed_packing_left_goes_when_the_home_is_opened(tmp_path: Path) -> None:
    with Store.open(tmp_path / "home") as store:
        folder = stage(store, "base", BASE)
        assert list(folder.iterdir())
    with Store.open(tmp_path / "home") as store:
        assert list(store.home.tmp_dir.iterdir()) == []
        assert data_files(store) == set()


# ---------------------------------------------------------------- failures and crashes


class Crash(BaseException):
    """The machine stops: nothing is done after it."""


class FailingDisk(Disk):
    """Its n-th operation fails, before or just after it took place; after a crash, all others too."""

    def __init__(self, after: bool, error: BaseException) -> None:
        self.left = 1_000_000  # not while the store is opened
        self.after = after
        self.error = error

    def _do(self, operation: Callable[..., None], *args: Any) -> None:
        self.left -= 1
        if self.left < 0 and isinstance(self.error, Crash):
            raise self.error
        if self.left != 0 or self.after:
            operation(*args)
        if self.left == 0:
            raise self.error

    def sync(self, path: Path) -> None:
        self._do(super().sync, path)

    def chmod(self, path: Path, mode: int) -> None:
        self._do(super().chmod, path, mode)

    def replace(self, source: Path, target: Path) -> None:
        self._do(super().replace, source, target)

    def link(self, source: Path, target: Path) -> None:
        self._do(super().link, source, target)

    def unlink(self, path: Path) -> None:
        self._do(super().unlink, path)

    def remove_tree(self, path: Path) -> None:
        self._do(super().remove_tree, path)


@pytest.mark.parametrize(
    ("graph", "crash", "damaged", "after"),  # every pair of two of them
    [
        (False, True, False, True),
        (False, True, True, False),
        (False, False, True, True),
        (True, True, True, True),
        (True, False, False, True),
        (True, False, True, False),
        (False, False, False, False),
        (True, True, False, False),
    ],
)
def test_a_pack_is_there_or_not_wherever_it_is_interrupted(
    tmp_path: Path, graph: bool, crash: bool, damaged: bool, after: bool
) -> None:
    tensors = BASE | {"head": b"H"}

    def stage_one(store: Store) -> Path:
        return stage_graph(store, "new") if graph else stage(store, "new", tensors)

    for n in itertools.count(1):
        path = tmp_path / f"{n}"
        with Store.open(path) as store:
            publish(store, "base", BASE)
            if damaged:
                os.truncate(store.publish_pack(stage_one(store)).folder / "index.json", 10)
        disk = FailingDisk(after, Crash() if crash else OSError(errno.ENOSPC, "No space left on device"))
        with Store.open(path, disk=disk) as store:
            folder = stage_one(store)
            disk.left = n
            published = False
            try:
                store.publish_pack(folder)
                published = True
            except (SystemFault, Crash) as error:
                if not crash:
                    assert "free some space" in str(error)
                    assert not folder.exists() or disk.left < 0
        with Store.open(path) as store:
            found = store.sound_pack("new")
            assert found is not None or not published
            verify(opened(store, "base"))
            assert opened(store, "base").index.files == publish(store, "base", BASE).index.files
            again = store.publish_pack(stage_one(store))
            verify(again)
            store.collect([store.home.pack_dir("base")])
            assert data_files(store) == {opened(store, "base").index.files[0].name}
            store.collect()
            assert data_files(store) == set()
            assert list(store.home.packs_dir.iterdir()) == list(store.home.tmp_dir.iterdir()) == []
        if disk.left > 0:
            break
    assert published
    assert n > 8


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("crash", [True, False])
def test_an_interrupted_collection_takes_nothing_that_is_used(tmp_path: Path, after: bool, crash: bool) -> None:
    for n in itertools.count(1):
        path = tmp_path / f"{n}"
        with Store.open(path) as store:
            publish(store, "base", BASE)
            publish(store, "tuned", BASE | {"head": b"H"})
            publish(store, "other", {"own": b"o" * PAGE})
        disk = FailingDisk(after, Crash() if crash else OSError(errno.EIO, "Input/output error"))
        with Store.open(path, disk=disk) as store:
            disk.left = n
            try:
                store.collect([store.home.pack_dir("tuned")])
            except (SystemFault, Crash):
                assert disk.left <= 0
        with Store.open(path) as store:
            assert content(opened(store, "tuned")) == BASE | {"head": b"H"}
            store.collect([store.home.pack_dir("tuned")])
            assert [path.name for path in store.home.packs_dir.iterdir()] == ["tuned"]
            assert data_files(store) == {file.name for file in opened(store, "tuned").index.files}
        if disk.left > 0:
            break
    assert n > 4
