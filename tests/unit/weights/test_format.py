from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarm.errors import BadDefinition, SystemFault, WeightsCorrupt
from rewarm.weights.format import (
    ALIGN_BYTES,
    DTYPES,
    DataFile,
    Index,
    LayerEntry,
    Pack,
    Span,
    TensorEntry,
    open_pack,
    tensor_bytes,
    tensor_digest,
    verify,
)

SHA = hashlib.sha256(b"").hexdigest()
PAGE = ALIGN_BYTES


def data_file(size_bytes: int, number: int = 0, suffix: str = ".safetensors") -> DataFile:
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    return DataFile(sha256 + suffix, size_bytes, sha256)


def at(begin: int, size_bytes: int, file: int = 0) -> TensorEntry:
    return TensorEntry("U8", (size_bytes,), file, begin, begin + size_bytes, SHA)


def make(layers: dict[str, dict[str, TensorEntry]], files: tuple[DataFile, ...] = (), **fields: Any) -> Index:
    """Layers by name; a name that begins with "~" is on demand."""
    given: dict[str, Any] = {
        "key": "k",
        "kind": "tensors",
        "order": "traced",
        "source_sha256": SHA,
        "files": files or (data_file(100 * PAGE),),
        "tensors": {name: entry for tensors in layers.values() for name, entry in tensors.items()},
        "layers": tuple(LayerEntry(name, tuple(tensors), name[0] == "~", 0.001) for name, tensors in layers.items()),
        "tied": {},
    }
    return Index(**given | fields)


SAMPLE = make(
    {
        "~embed": {"embed.weight": at(PAGE, 5000)},
        "block.0": {"b0.weight": at(3 * PAGE, PAGE), "b0.bias": at(4 * PAGE, 10), "b0.none": at(5 * PAGE, 0)},
        "block.1": {"b1.weight": at(0, 2 * PAGE, 1), "b1.ü": at(5 * PAGE, 1)},
    },
    (data_file(6 * PAGE, 0), data_file(2 * PAGE, 1)),
    tied={"head.weight": "embed.weight"},
    setup_s=0.0125,
)


def onnx() -> Index:
    data = data_file(PAGE + 7, suffix=".data")
    entries = {"a": {"w": at(3, 9)}, "b": {"v": at(12, PAGE - 5)}}
    return make(entries, (data,), kind="onnx", graph=DataFile("model.onnx", 4, SHA))


EMPTY_GRAPH = dataclasses.replace(onnx(), files=(), tensors={}, layers=(LayerEntry("all", (), False, 0.0),))


# ---------------------------------------------------------------- index.json


@pytest.mark.parametrize("index", [SAMPLE, onnx(), EMPTY_GRAPH])
def test_an_index_comes_back_as_it_was(index: Index) -> None:
    assert Index.loads(index.dumps()) == index
    assert Index.loads(index.dumps()).dumps() == index.dumps()


def test_an_index_is_json_with_the_digest_of_its_canonical_form() -> None:
    found = json.loads(SAMPLE.dumps())
    body = json.dumps(found["index"], sort_keys=True, separators=(",", ":")).encode()
    assert found["digest"] == hashlib.sha256(body).hexdigest()
    assert found["index"]["format"] == 1
    assert found["index"]["layers"][1] == ["block.0", ["b0.weight", "b0.bias", "b0.none"], False, 0.001]


def test_the_spelling_does_not_depend_on_the_order_of_names() -> None:
    other = dataclasses.replace(SAMPLE, tensors=dict(reversed(SAMPLE.tensors.items())))
    assert other.dumps() == SAMPLE.dumps()


def test_every_flipped_bit_is_seen() -> None:
    data = SAMPLE.dumps()
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(WeightsCorrupt, match="deploy the function again"):
                Index.loads(bytes(flipped))


def test_every_truncation_and_every_appended_byte_is_seen() -> None:
    data = SAMPLE.dumps()
    for cut in [data[:n] for n in range(len(data))] + [data[n:] for n in range(1, 200)] + [data + b"\n", data + b" "]:
        with pytest.raises(WeightsCorrupt):
            Index.loads(cut)


@given(st.binary(max_size=300))
def test_no_bytes_but_a_typed_error(data: bytes) -> None:
    with pytest.raises(WeightsCorrupt):
        Index.loads(data)


def sealed(body: object) -> bytes:
    """What a hostile packer could write: any JSON under a digest that fits."""
    text = body if isinstance(body, bytes) else json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return b'{"digest":"' + hashlib.sha256(text).hexdigest().encode() + b'","index":' + text + b"}\n"


def changed(**fields: Any) -> bytes:
    return sealed(json.loads(SAMPLE.dumps())["index"] | fields)


BAD_BODIES = {
    "not json": sealed(b"{"),
    "nested": sealed(b"[" * 100_000),
    "a list": sealed([1]),
    "null": sealed(None),
    "no fields": sealed({"format": 1}),
    "newer": changed(format=2),
    "tensors": changed(tensors=[]),
    "tensor": changed(tensors={"a": ["U8", [1]]}),
    "shape": changed(tensors={"a": ["U8", None, 0, 0, 1, SHA]}),
    "layers": changed(layers=[["a"]]),
    "tied": changed(tied=[1]),
    "files": changed(files=[["a", 1]]),
    "file numbers": changed(files=[["a", "b", "c"]]),
    "file digest": changed(files=[["a", 1, None]]),
    "unhashable": changed(layers=[["a", [[]], False, 0.0]]),
    "not utf-8": sealed(b'{"\xff":1}'),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_digest_alone_makes_no_index(name: str) -> None:
    with pytest.raises(WeightsCorrupt, match="not the index of a pack"):
        Index.loads(BAD_BODIES[name])


def test_the_harness_of_bad_bodies_makes_good_ones() -> None:
    assert Index.loads(changed()) == SAMPLE


BAD_FIELDS: list[dict[str, Any]] = [
    {"kind": "gguf"},
    {"order": "random"},
    {"key": ""},
    {"key": "../elsewhere"},
    {"key": ".hidden"},
    {"source_sha256": None},
    {"graph": DataFile("model.onnx", 1, SHA)},
    {"kind": "onnx", "graph": None},
    {"layers": ()},
    {"layers": (LayerEntry("a", ("no such",), False, 0.0),)},
    {"layers": (LayerEntry("a", (), 1, 0.0),)},  # type: ignore[arg-type]
    {"layers": (LayerEntry("a", (), False, math.nan),)},
    {"layers": (LayerEntry("a", (), False, -1.0),)},
    {"setup_s": math.inf},
    {"tied": {"x": "no such"}},
    {"tied": {"b0.bias": "b0.weight"}},
    {"files": (DataFile("../" + SHA, 6 * PAGE, SHA), SAMPLE.files[1])},
    {"files": (DataFile(SHA + ".data", 6 * PAGE, SHA), SAMPLE.files[1])},
    {"files": SAMPLE.files[:1]},
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=str)
def test_what_cannot_be_a_pack_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadDefinition):
        dataclasses.replace(SAMPLE, **fields)


@pytest.mark.parametrize(
    "entry",
    [
        at(PAGE + 1, 10),  # not aligned
        at(99 * PAGE, PAGE + 1),  # past the end of the file
        at(-PAGE, PAGE),
        TensorEntry("U8", (10,), 0, PAGE, 0, SHA),
        TensorEntry("F32", (10,), 0, 0, 10, SHA),  # 40 bytes
        TensorEntry("F128", (1,), 0, 0, 16, SHA),
        TensorEntry("U8", (-1, -1), 0, 0, 1, SHA),
        TensorEntry("U8", (True,), 0, 0, 1, SHA),
        TensorEntry("U8", (1,), 1, 0, 1, SHA),  # there is one file
        TensorEntry("U8", (1,), -1, 0, 1, SHA),
        TensorEntry("U8", (1,), 0, False, 1, SHA),
        TensorEntry("U8", (1,), 0, 0, 1, "0"),
    ],
)
def test_a_tensor_must_fit_where_it_is_said_to_lie(entry: TensorEntry) -> None:
    with pytest.raises(BadDefinition):
        make({"a": {"w": entry}})


def test_the_tensors_of_a_graph_need_not_be_aligned() -> None:
    index = onnx()
    assert index.spans(0) == (Span(0, 0, PAGE),)
    assert index.spans(1) == (Span(0, 0, PAGE + 7),)
    assert [layer.size_bytes for layer in index.facts().layers] == [PAGE, 7]  # the first page came with the first


# ---------------------------------------------------------------- dtypes and digests


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_of_a_tensor(dtype: str) -> None:
    assert tensor_bytes(dtype, (2, 3)) == 6 * DTYPES[dtype]
    assert tensor_bytes(dtype, ()) == DTYPES[dtype]
    assert tensor_bytes(dtype, (4, 0)) == 0


@pytest.mark.parametrize("dtype", ["", "f32", "F4", "STRING"])
def test_an_unknown_dtype_names_the_known(dtype: str) -> None:
    with pytest.raises(BadDefinition, match=r"cannot be packed.*BF16"):
        tensor_bytes(dtype, (1,))


def test_the_digest_of_a_tensor_covers_dtype_shape_and_bytes() -> None:
    given = [("U8", (4,), b"abcd"), ("I8", (4,), b"abcd"), ("U8", (2, 2), b"abcd"), ("U8", (4,), b"abce")]
    assert len({tensor_digest(*tensor) for tensor in given}) == 4
    assert tensor_digest("U8", (4,), memoryview(b"abcd")) == tensor_digest(*given[0])


# ---------------------------------------------------------------- spans


def test_spans_are_whole_pages_and_merged() -> None:
    assert SAMPLE.spans(0) == (Span(0, PAGE, 3 * PAGE),)
    assert SAMPLE.spans(1) == (Span(0, 3 * PAGE, 5 * PAGE),)  # the empty tensor takes nothing
    assert SAMPLE.spans(2) == (Span(0, 5 * PAGE, 6 * PAGE), Span(1, 0, 2 * PAGE))
    assert SAMPLE.streamed_spans() == (Span(0, 3 * PAGE, 6 * PAGE), Span(1, 0, 2 * PAGE))


def test_the_last_page_of_a_file_is_cut() -> None:
    index = make({"a": {"w": at(PAGE, 10)}}, (data_file(PAGE + 10),))
    assert index.spans(0) == index.streamed_spans() == (Span(0, PAGE, PAGE + 10),)


def test_facts_leave_files_and_names_away() -> None:
    facts = SAMPLE.facts()
    assert (facts.key, facts.setup_s) == ("k", 0.0125)
    assert [tuple(layer) for layer in facts.layers] == [
        ("~embed", 2 * PAGE, 0.001, True, 0.0),
        ("block.0", 2 * PAGE, 0.001, False, 0.0),
        ("block.1", 3 * PAGE, 0.001, False, 0.0),
    ]
    assert facts.streamed_bytes == 5 * PAGE
    assert sum(end - begin for number, _, begin, end in facts.table_spans if number == 0) == 2 * PAGE


def test_tables_are_pinned_before_what_is_streamed() -> None:
    assert SAMPLE.pinned_spans() == SAMPLE.streamed_spans()
    assert SAMPLE.pinned_spans((0,)) == (*SAMPLE.spans(0), *SAMPLE.streamed_spans())
    assert SAMPLE.pinned_spans((1, 99, -1)) == SAMPLE.streamed_spans()  # not tables


def test_what_a_layer_on_demand_shares_with_a_streamed_one_is_streamed() -> None:
    shared = at(0, 2 * PAGE)
    index = make({"~embed": {"embed": shared, "extra": at(4 * PAGE, 1)}, "head": {"head": shared}})
    assert [layer.size_bytes for layer in index.facts().layers] == [PAGE, 2 * PAGE]
    assert index.streamed_spans() == (Span(0, 0, 2 * PAGE),)


def test_what_two_layers_share_counts_for_the_first() -> None:
    index = make({"a": {"w": at(0, 3 * PAGE)}, "b": {"mid": at(PAGE, PAGE), "v": at(3 * PAGE, 1)}})
    assert [layer.size_bytes for layer in index.facts().layers] == [3 * PAGE, PAGE]
    assert index.spans(1) == (Span(0, PAGE, 2 * PAGE), Span(0, 3 * PAGE, 4 * PAGE))
    assert index.streamed_spans() == (Span(0, 0, 4 * PAGE),)


def pages(spans: tuple[Span, ...]) -> list[tuple[int, int]]:
    return [(span.file, page) for span in spans for page in range(span.begin // PAGE, -(-span.end // PAGE))]


PLACES = st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(0, 4 * PAGE))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.lists(PLACES, max_size=4)), min_size=1, max_size=6))
def test_spans_against_sets_of_pages(model: list[tuple[bool, list[tuple[int, int, int]]]]) -> None:
    layers = {
        ("~" if on_demand else "") + str(layer_no): {
            f"{layer_no}.{number}": at(page * PAGE, size_bytes, file)
            for number, (file, page, size_bytes) in enumerate(places)
        }
        for layer_no, (on_demand, places) in enumerate(model)
    }
    index = make(layers, (data_file(34 * PAGE + 5, 0), data_file(34 * PAGE + 5, 1)))
    needed = [
        {(file, page + n) for file, page, size_bytes in places for n in range(-(-size_bytes // PAGE))}
        for _, places in model
    ]
    streamed: list[tuple[int, int]] = []
    for layer_no, (on_demand, _) in enumerate(model):
        assert pages(index.spans(layer_no)) == sorted(needed[layer_no])
        if not on_demand:
            new = needed[layer_no] - set(streamed)
            assert index.facts().layers[layer_no].size_bytes == len(new) * PAGE
            streamed += sorted(new)
    assert pages(index.streamed_spans()) == streamed
    assert index.facts().streamed_bytes == len(streamed) * PAGE
    assert index.facts().total_bytes == len(set().union(*needed)) * PAGE


# ---------------------------------------------------------------- packs on the disk


def on_disk(folder: Path, content: bytes = b"x" * 5000, kind: str = "tensors") -> Pack:
    """A pack with one data file of these bytes."""
    tensors_dir, pack_dir = folder / "tensors", folder / "packs" / "k"
    tensors_dir.mkdir(parents=True)
    pack_dir.mkdir(parents=True)
    sha256 = hashlib.sha256(content).hexdigest()
    file = DataFile(sha256 + (".data" if kind == "onnx" else ".safetensors"), len(content), sha256)
    graph = None
    (tensors_dir / file.name).write_bytes(content)
    if kind == "onnx":
        (pack_dir / "weights.data").hardlink_to(tensors_dir / file.name)
        (pack_dir / "model.onnx").write_bytes(b"graph")
        graph = DataFile("model.onnx", 5, hashlib.sha256(b"graph").hexdigest())
    index = make({"a": {"w": at(0, len(content))}}, (file,), kind=kind, graph=graph)
    (pack_dir / "index.json").write_bytes(index.dumps())
    return Pack(index, pack_dir, tensors_dir)


@pytest.mark.parametrize("kind", ["tensors", "onnx"])
def test_a_pack_is_opened_and_verified(tmp_path: Path, kind: str) -> None:
    made = on_disk(tmp_path, kind=kind)
    pack = open_pack(made.folder, made.tensors_dir)
    assert pack == made
    assert pack.path(0).read_bytes() == b"x" * 5000
    assert pack.path(0).parent == (made.folder if kind == "onnx" else made.tensors_dir)
    verify(pack)


def test_a_file_larger_than_a_chunk_is_verified(tmp_path: Path) -> None:
    pack = on_disk(tmp_path, b"abc" * 2_000_000)
    verify(pack)
    with pack.path(0).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    open_pack(pack.folder, pack.tensors_dir)  # sizes alone do not tell
    with pytest.raises(WeightsCorrupt, match=r"not what was written.*deploy the function again"):
        verify(pack)


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 4999, 5001, 1 << 20])
def test_a_data_file_of_another_size_is_not_opened(tmp_path: Path, size_bytes: int) -> None:
    pack = on_disk(tmp_path)
    os.truncate(pack.path(0), size_bytes)
    with pytest.raises(WeightsCorrupt, match=f"has {size_bytes} bytes, not 5000; deploy"):
        open_pack(pack.folder, pack.tensors_dir)
    with pytest.raises(WeightsCorrupt):
        verify(pack)


def _cut_graph(pack: Pack) -> None:
    (pack.folder / "model.onnx").write_bytes(b"grap")


@pytest.mark.parametrize(
    "harm",
    [
        lambda pack: pack.path(0).unlink(),
        lambda pack: (pack.folder / "index.json").unlink(),
        lambda pack: (pack.folder / "model.onnx").unlink(),
        lambda pack: (pack.folder / "index.json").write_bytes(b""),
        _cut_graph,
    ],
)
def test_what_is_missing_or_cut_is_seen(tmp_path: Path, harm: Any) -> None:
    pack = on_disk(tmp_path, kind="onnx")
    harm(pack)
    with pytest.raises(WeightsCorrupt, match="deploy the function again"):
        open_pack(pack.folder, pack.tensors_dir)


def test_a_folder_in_the_place_of_a_file_is_seen(tmp_path: Path) -> None:
    pack = on_disk(tmp_path)
    pack.path(0).unlink()
    pack.path(0).mkdir()
    with pytest.raises(WeightsCorrupt):
        open_pack(pack.folder, pack.tensors_dir)
    with pytest.raises(WeightsCorrupt):
        verify(pack)


def test_a_graph_that_was_changed_is_seen(tmp_path: Path) -> None:
    pack = on_disk(tmp_path, kind="onnx")
    (pack.folder / "model.onnx").write_bytes(b"Graph")
    with pytest.raises(WeightsCorrupt, match=r"model\.onnx"):
        verify(pack)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_disk_that_fails_is_not_a_damaged_pack(tmp_path: Path) -> None:
    pack = on_disk(tmp_path)
    (pack.folder / "index.json").chmod(0)
    with pytest.raises(SystemFault, match="check the disk") as caught:
        open_pack(pack.folder, pack.tensors_dir)
    assert not isinstance(caught.value, WeightsCorrupt)


def test_too_many_links_are_no_damaged_pack(tmp_path: Path) -> None:
    pack = on_disk(tmp_path)
    index = pack.folder / "index.json"
    index.unlink()
    index.symlink_to(index)
    with pytest.raises(SystemFault, match="check the disk") as caught:
        open_pack(pack.folder, pack.tensors_dir)
    assert not isinstance(caught.value, WeightsCorrupt)
