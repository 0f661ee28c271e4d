from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewarm
from rewarm.errors import BadDefinition, SystemFault
from rewarm.weights.format import ALIGN_BYTES, DTYPES, DataFile, Index, open_pack, tensor_bytes, tensor_digest, verify
from rewarm.weights.writer import Known, LayerIn, TensorIn, dump_known, load_known, write_pack

PAGE = ALIGN_BYTES


def tensor(name: str, content: bytes, dtype: str = "U8", shape: tuple[int, ...] | None = None) -> TensorIn:
    return TensorIn(name, dtype, (len(content),) if shape is None else shape, lambda: content)


def fill(number: int, size_bytes: int) -> bytes:
    return np.random.default_rng(number).bytes(size_bytes)


MODEL = (
    LayerIn("embed", (tensor("embed.weight", fill(0, 3 * PAGE)),), on_demand=True),
    LayerIn("block.2", (tensor("b2.weight", fill(1, PAGE)), tensor("b2.bias", fill(2, 10))), compute_s=0.25),
    LayerIn("relu", ()),
    LayerIn(
        "block.10",
        (
            tensor("b10.weight", fill(3, 24), "F32", (2, 3)),
            tensor("b10.scalar", fill(4, 8), "F64", ()),
            tensor("b10.none", b"", "F16", (0, 7)),
            tensor("b10.bias", fill(2, 10)),  # equal to the bias of block.2
        ),
    ),
    LayerIn("head", (tensor("embed.weight", fill(0, 3 * PAGE)),)),  # tied: streamed here
)


class Desk:
    """A place to pack: writes, then puts the data file where the home would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors_dir = path / "tensors"
        self.tensors_dir.mkdir()
        self.count = 0

    def fresh(self) -> Path:
        self.count += 1
        folder = self.path / f"{self.count}"
        folder.mkdir()
        return folder

    def pack(self, layers: tuple[LayerIn, ...], **fields: Any) -> tuple[Path, Index]:
        folder = self.fresh()
        needed: dict[str, Any] = {"key": "k", "order": "traced", "source_sha256": "0" * 64}
        index = write_pack(folder, self.tensors_dir, layers, **needed | fields)
        for path in folder.glob("*.safetensors"):
            path.rename(self.tensors_dir / path.name)
        verify(open_pack(folder, self.tensors_dir))
        return folder, index

    def content(self, index: Index, name: str) -> bytes:
        entry = index.tensors[index.tied.get(name, name)]
        return (self.tensors_dir / index.files[entry.file].name).read_bytes()[entry.begin : entry.end]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def known_of(*indexes: Index) -> Known:
    return {
        entry.sha256: (index.files[entry.file], entry.begin, entry.end)
        for index in indexes
        for entry in index.tensors.values()
    }


def names(layers: tuple[LayerIn, ...]) -> dict[str, bytes]:
    return {tensor.name: bytes(tensor.data()) for layer in layers for tensor in layer.tensors}


# ---------------------------------------------------------------- what is written


def test_every_tensor_is_where_the_index_says(desk: Desk) -> None:
    folder, index = desk.pack(MODEL, tied={"lm_head.weight": "embed.weight"}, setup_s=0.5)
    assert Index.loads((folder / "index.json").read_bytes()) == index
    assert [path.name for path in folder.iterdir()] == ["index.json"]
    for name, content in names(MODEL).items():
        entry = index.tensors[name]
        assert desk.content(index, name) == content
        assert entry.sha256 == tensor_digest(entry.dtype, entry.shape, content)
        assert entry.begin % PAGE == 0
    assert desk.content(index, "lm_head.weight") == names(MODEL)["embed.weight"]
    assert (index.kind, index.order, index.setup_s) == ("tensors", "traced", 0.5)


def test_layers_follow_each_other_in_the_order_of_execution(desk: Desk) -> None:
    _, index = desk.pack(MODEL)
    assert [layer.name for layer in index.layers] == ["embed", "block.2", "relu", "block.10", "head"]
    assert index.layers[1].compute_s == 0.25
    assert index.layers[0].on_demand
    begins = [entry.begin for entry in index.tensors.values()]
    assert begins[:5] == sorted(begins[:5])
    # The head needs what the embedding has, so that is streamed with the head.
    assert [layer.size_bytes for layer in index.facts().layers] == [0, 2 * PAGE, 0, 2 * PAGE, 3 * PAGE]


def test_equal_tensors_are_one(desk: Desk) -> None:
    _, index = desk.pack(MODEL)
    assert index.tensors["b2.bias"] == index.tensors["b10.bias"]
    assert index.spans(3)[0].begin == index.tensors["b2.bias"].begin


def test_the_data_file_is_safetensors(desk: Desk) -> None:
    library = pytest.importorskip("safetensors.numpy")
    from safetensors import safe_open

    _, index = desk.pack(MODEL)
    path = desk.tensors_dir / index.files[0].name
    loaded = library.load_file(path)
    own = {name: array for name, array in loaded.items() if not name.startswith("__pad__.")}
    expected = names(MODEL)
    del expected["b10.bias"]  # is b2.bias
    assert {name: array.tobytes() for name, array in own.items()} == expected
    assert own["b10.weight"].shape == (2, 3)
    assert own["b10.weight"].dtype == np.float32
    assert own["b10.scalar"].shape == ()
    assert own["b10.none"].shape == (0, 7)
    with safe_open(path, framework="numpy") as opened:
        assert opened.get_slice("b10.weight").get_shape() == [2, 3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_one_that_safetensors_knows(desk: Desk, dtype: str) -> None:
    library = pytest.importorskip("safetensors")
    _, index = desk.pack((LayerIn("all", (tensor("w", fill(1, 6 * DTYPES[dtype]), dtype, (2, 3)),)),))
    content = (desk.tensors_dir / index.files[0].name).read_bytes()
    ((_, found),) = library.deserialize(content)
    assert (found["dtype"], found["shape"]) == (dtype, [2, 3])


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        desk = Desk(tmp_path / name)
        folder, index = desk.pack(MODEL)
        written.append(((folder / "index.json").read_bytes(), (desk.tensors_dir / index.files[0].name).read_bytes()))
    assert written[0] == written[1]


def test_a_model_without_tensors_needs_no_file(desk: Desk) -> None:
    _, index = desk.pack((LayerIn("relu", ()),))
    assert index.files == ()
    assert list(desk.tensors_dir.iterdir()) == []


def test_data_may_be_any_buffer(desk: Desk) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    layer = LayerIn(
        "all",
        (
            TensorIn("array", "F32", (2, 3), lambda: memoryview(array)),
            TensorIn("mutable", "U8", (3,), lambda: bytearray(b"abc")),
            TensorIn("empty", "F32", (0, 3), lambda: memoryview(array[:0])),
        ),
    )
    _, index = desk.pack((layer,))
    assert desk.content(index, "array") == array.tobytes()
    assert desk.content(index, "mutable") == b"abc"


def test_one_tensor_is_held_at_a_time(desk: Desk) -> None:
    alive = most = calls = 0

    class Held(bytearray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def data() -> bytearray:
        nonlocal alive, most, calls
        alive, calls = alive + 1, calls + 1
        most = max(most, alive)
        return Held(calls.to_bytes(4) if calls <= 8 else (calls - 8).to_bytes(4))

    desk.pack((LayerIn("all", tuple(TensorIn(f"{n}", "U8", (4,), data) for n in range(8))),))
    assert (calls, most, alive) == (16, 1, 0)


SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
TENSORS = st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES, st.integers(0, 2))


@settings(deadline=None, max_examples=60)
@given(model=st.lists(st.lists(TENSORS, max_size=4), min_size=1, max_size=4), split=st.integers(0, 16))
def test_any_model_comes_back(
    tmp_path_factory: pytest.TempPathFactory, model: list[list[tuple[str, tuple[int, ...], int]]], split: int
) -> None:
    desk = Desk(tmp_path_factory.mktemp("desk"))
    layers = tuple(
        LayerIn(
            f"{layer_no}",
            tuple(
                tensor(f"{layer_no}.{number}", fill(seed, tensor_bytes(dtype, shape)), dtype, shape)
                for number, (dtype, shape, seed) in enumerate(tensors)
            ),
        )
        for layer_no, tensors in enumerate(model)
    )
    _, first = desk.pack(layers)
    some = dict(list(known_of(first).items())[:split])
    for _, index in (desk.pack(layers), desk.pack(layers, known=some), desk.pack(layers, known=known_of(first))):
        for name, content in names(layers).items():
            assert desk.content(index, name) == content
            assert index.tensors[name].begin % PAGE == 0
    assert index.files == first.files


# ---------------------------------------------------------------- what is known is not written again


def variant(changed: Mapping[str, bytes]) -> tuple[LayerIn, ...]:
    def change(old: TensorIn) -> TensorIn:
        return old._replace(data=lambda: changed[old.name]) if old.name in changed else old

    return tuple(layer._replace(tensors=tuple(map(change, layer.tensors))) for layer in MODEL)


def test_a_fine_tuned_variant_writes_what_differs(desk: Desk) -> None:
    _, base = desk.pack(MODEL)
    tuned = variant({"b10.weight": fill(9, 24)})
    _, index = desk.pack(tuned, known=known_of(base))
    assert index.files[0] == base.files[0]
    assert index.files[1].size_bytes == PAGE + 24  # its header and the one tensor
    assert index.tensors["b2.weight"] == base.tensors["b2.weight"]
    assert {name: desk.content(index, name) for name in index.tensors} == names(tuned)
    assert len(list(desk.tensors_dir.iterdir())) == 2


def test_what_is_all_known_has_no_new_file(desk: Desk) -> None:
    _, base = desk.pack(MODEL)
    renamed = tuple(
        layer._replace(tensors=tuple(t._replace(name=f"encoder.{t.name}") for t in layer.tensors)) for layer in MODEL
    )
    folder, index = desk.pack(renamed, known=known_of(base), key="other")
    assert index.files == base.files
    assert index.tensors == {f"encoder.{name}": entry for name, entry in base.tensors.items()}
    assert len(list(desk.tensors_dir.iterdir())) == 1
    assert [path.name for path in folder.iterdir()] == ["index.json"]


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: os.truncate(path, PAGE)])
def test_what_is_known_and_went_is_written_anew(desk: Desk, harm: Callable[[Path], None]) -> None:
    _, base = desk.pack(MODEL)
    path = desk.tensors_dir / base.files[0].name
    harm(path)
    _, index = desk.pack(MODEL, known=known_of(base))
    assert index == base  # the same bytes, so the same name
    assert path.stat().st_size == base.files[0].size_bytes


def test_equal_bytes_of_another_dtype_or_shape_are_not_taken_for_the_same(desk: Desk) -> None:
    _, base = desk.pack((LayerIn("a", (tensor("w", b"abcd"),)),))
    other = (LayerIn("a", (tensor("w", b"abcd", "I8"), tensor("v", b"abcd", shape=(2, 2)))),)
    _, index = desk.pack(other, known=known_of(base))
    assert base.files[0] not in index.files


def test_known_tensors_travel_between_processes(desk: Desk) -> None:
    known = known_of(desk.pack(MODEL)[1])
    assert load_known(dump_known(known)) == known
    assert all(isinstance(file, DataFile) for file, _, _ in load_known(dump_known(known)).values())


# ---------------------------------------------------------------- what cannot be packed


BAD_MODELS: dict[str, tuple[tuple[LayerIn, ...], str]] = {
    "no layers": ((), "at least one layer"),
    "dtype": ((LayerIn("a", (tensor("w", b"abcd", "Q4_K", (4,)),)),), "dtype 'Q4_K' cannot be packed"),
    "shape": ((LayerIn("a", (tensor("w", b"abcd", shape=(-4,)),)),), "whole numbers"),
    "fewer bytes": ((LayerIn("a", (tensor("w", b"abc", shape=(4,)),)),), "has 4 bytes, but its data 3"),
    "more bytes": ((LayerIn("a", (tensor("w", b"abcde", shape=(4,)),)),), "has 4 bytes, but its data 5"),
    "no name": ((LayerIn("a", (tensor("", b"a"),)),), "named ''"),
    "padding": ((LayerIn("a", (tensor("__pad__.1", b"a"),)),), "named '__pad__.1'"),
    "metadata": ((LayerIn("a", (tensor("__metadata__", b"a"),)),), "named '__metadata__'"),
    "two kinds": ((LayerIn("a", (tensor("w", b"ab"), tensor("w", b"ab", "I8"))),), "'w' is"),
    "seconds": ((LayerIn("a", (tensor("w", b"ab"),), compute_s=float("nan")),), "seconds"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_what_cannot_be_packed_is_said_and_leaves_nothing(desk: Desk, name: str) -> None:
    layers, message = BAD_MODELS[name]
    with pytest.raises(BadDefinition, match=message):
        desk.pack(layers)
    assert list((desk.path / "1").iterdir()) == list(desk.tensors_dir.iterdir()) == []


def test_a_name_tied_to_nothing_leaves_nothing(desk: Desk) -> None:
    with pytest.raises(BadDefinition, match="cannot be tied"):
        desk.pack(MODEL, tied={"lm_head.weight": "no such"})
    assert list((desk.path / "1").iterdir()) == []


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("engine"), KeyboardInterrupt()])
@pytest.mark.parametrize("reads", [0, 1])
def test_a_source_that_fails_leaves_nothing(desk: Desk, error: BaseException, reads: int) -> None:
    count = 0

    def data() -> bytes:
        nonlocal count
        count += 1
        if count > reads:
            raise error
        return b"abcd"

    layers = (MODEL[0], LayerIn("bad", (TensorIn("w", "U8", (4,), data),)))
    with pytest.raises(SystemFault if isinstance(error, OSError) else type(error)):
        desk.pack(layers)
    assert list((desk.path / "1").iterdir()) == []


def test_a_source_that_changes_its_size_leaves_nothing(desk: Desk) -> None:
    answers = [b"abcd", b"abc"]
    with pytest.raises(BadDefinition, match="has 4 bytes, but its data 3"):
        desk.pack((LayerIn("a", (TensorIn("w", "U8", (4,), lambda: answers.pop(0)),)),))
    assert list((desk.path / "1").iterdir()) == []


#: Packs 1 MiB where files may have 64 KiB. argv: folder to pack into, folder of tensors.
NO_ROOM = """
import json, resource, sys
from pathlib import Path
from rewarm.errors import SystemFault
from rewarm.weights.writer import LayerIn, TensorIn, write_pack

resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
layer = LayerIn("a", (TensorIn("w", "U8", (1 << 20,), lambda: bytes(1 << 20)),))
try:
    write_pack(Path(sys.argv[1]), Path(sys.argv[2]), [layer], key="k", order="traced", source_sha256="0")
except SystemFault as error:
    print(json.dumps([error.code, error.message]))
"""


def test_a_full_disk_is_said_and_leaves_nothing(desk: Desk) -> None:
    folder = desk.fresh()
    env = os.environ | {"PYTHONPATH": str(Path(rewarm.__file__).parents[1])}
    command = [sys.executable, "-c", NO_ROOM, str(folder), str(desk.tensors_dir)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    code, message = json.loads(done.stdout)
    assert code == "system_fault"
    assert str(folder) in message
    assert "free some space" in message
    assert list(folder.iterdir()) == list(desk.tensors_dir.iterdir()) == []
