"""torch modules with the weights of a file: the answers of a plain load, bit for bit, however they were loaded."""

from __future__ import annotations

import gc
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import BadDefinition
from rewarm.worker.weights import Weights

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from torch import nn  # noqa: E402
from torch.nn.modules import module as torch_module  # noqa: E402

from rewarm.worker import checkpoints, modules  # noqa: E402


class Conv(nn.Module):
    """BatchNorm's statistics are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x).mean((2, 3)))


class Transformer(nn.Module):
    """A head tied to the table of tokens, tables that are no parameter, a parameter of its own, a mask."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.head = nn.Linear(width, 50, bias=False)
        self.tokens = nn.Embedding(50, width, padding_idx=0)
        self.head.weight = self.tokens.weight
        self.places = nn.Embedding(12, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 32, batch_first=True) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.randn(width))
        nn.init.trunc_normal_(self.scale)
        angles = torch.outer(torch.arange(12.0), 1.0 / 100.0 ** torch.linspace(0, 1, width))
        self.register_buffer("rotary", angles.cos(), persistent=False)
        self.register_buffer("ids", torch.arange(12), persistent=False)
        self.mask = torch.full((12, 12), float("-inf")).triu_(1)  # not even a buffer
        for part in self.modules():
            if isinstance(part, nn.Linear):
                part.weight.data.normal_(0.0, 0.02)

    def forward(self, x: Any) -> Any:
        length = x.shape[1]
        h = (self.tokens(x) + self.places(self.ids[:length])) * self.rotary[:length]
        for block in self.blocks:
            h = block(h, src_mask=self.mask[:length, :length])
        return self.head(self.norm(h) * self.scale)


class Encoder(nn.Module):
    """Without a mask: torch's own fast path for it, which a module with hooks does not take."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Any) -> Any:
        return self.layers(x)


class Twice(nn.Module):
    """One module runs twice, one has two names, and a parameter is used without its module."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.again = self.a
        self.late = nn.Parameter(torch.ones(6))

    def forward(self, x: Any) -> Any:
        return self.a(torch.relu(self.b(self.again(x)))) @ self.b.weight.T + self.late


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Any) -> Any:
        return self.low(x) if float(x.sum()) < 0 else self.high(x)


class Recurrent(nn.Module):
    """It keeps its parameters in a list as well."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 5, num_layers=2, batch_first=True)
        nn.init.orthogonal_(self.rnn.weight_hh_l0)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


class Attention(nn.Module):
    """It uses the weight of its child out_proj without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.attention(x, x, x, need_weights=False)[0]


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-9, 9, (4, 6), dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.rand(4, 1).to(torch.float8_e4m3fn), requires_grad=False)
        self.register_buffer("zero", torch.tensor(3, dtype=torch.int16))
        self.empty = nn.Parameter(torch.empty(0, 6))

    def forward(self, x: Any) -> Any:
        return x @ ((self.weight.float() - self.zero) * self.scale.float()).T


class Renormed(nn.Module):
    """Its forward writes into its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4, max_norm=0.5)

    def forward(self, x: Any) -> Any:
        return self.table(x)


class Parametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))

    def forward(self, x: Any) -> Any:
        return self.part(x)


class FromValues(nn.Module):
    """Keeps what it computed from a parameter: this cannot be built without values."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(6, 6)
        nn.init.ones_(self.part.weight)
        self.register_buffer("total", self.part.weight.detach().sum(), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.part(x) / self.total


class Branching(FromValues):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0 if bool((self.part.weight > 0).all()) else 3.0

    def forward(self, x: Any) -> Any:
        return super().forward(x) * self.factor


class Seeded(nn.Module):
    """Its buffer depends on how many numbers its parameters drew."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.part = nn.Linear(6, 6)
        self.register_buffer("noise", torch.randn(6), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.part(x) + self.noise


def images() -> Any:
    return torch.rand(2, 3, 9, 9)


def tokens() -> Any:
    return torch.randint(0, 9, (2, 7))


def rows() -> Any:
    return torch.randn(3, 6)


def steps() -> Any:
    return torch.randn(2, 5, 6)


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "cnn": (Conv, images),
    "transformer": (Transformer, tokens),
    "encoder": (Encoder, lambda: torch.randn(2, 5, 16)),
    "twice": (Twice, rows),
    "branch": (Branch, rows),
    "recurrent": (Recurrent, steps),
    "attention": (Attention, lambda: torch.randn(2, 5, 8)),
    "bf16": (lambda: Transformer().to("cpu", torch.bfloat16), tokens),
    "f16": (lambda: Twice().half(), lambda: rows().half()),
    "quantised": (Quantised, rows),
    "renormed": (Renormed, tokens),
    "parametrised": (Parametrised, rows),
    "from values": (FromValues, rows),
    "branching": (Branching, rows),
    "seeded": (Seeded, rows),
}


def saved(model: Any, path: Path) -> Path:
    """Without the other names of tied tensors, which safetensors refuses."""
    state: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        if not tensor.numel() or all(tensor.data_ptr() != other.data_ptr() for other in state.values()):
            state[name] = tensor
    safetensors.save_file(state, path)
    return path


def changed(factory: Callable[[], Any]) -> Any:
    """A model with other weights than its constructor gives, and with statistics."""
    torch.manual_seed(5)
    model = factory()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(
                value * 0.75 + (value != 0) * 0.125 if value.is_floating_point() and value.itemsize > 1 else value
            )
    return model


def plain(factory: Callable[[], Any], state: dict[str, Any]) -> Any:
    """The load that everything is compared with."""
    model = factory()
    model.load_state_dict(state)
    return model.eval()


def answers(model: Any, *inputs: Any) -> list[Any]:
    with torch.inference_mode():
        return [model(x) for x in inputs]


def equal(one: list[Any], other: list[Any]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def hooks() -> int:
    return len(torch_module._global_forward_pre_hooks) + len(torch_module._global_forward_hooks)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def evicted(weights: Weights) -> Weights:
    """Again, none of its files in memory, as far as their file system can do without."""
    weights._stream = weights._mapped = weights._first = None  # the kernel keeps what is mapped
    gc.collect()
    for path, _ in weights._pack.files():  # type: ignore[union-attr]
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    return Weights.packed(weights.path, weights._order)


@pytest.mark.parametrize("case", CASES)
def test_every_way_of_loading_answers_as_a_plain_load_does(case: str, tmp_path: Path, make_pack: Any) -> None:
    factory, make_input = CASES[case]
    source = changed(factory)
    inputs = [make_input(), -make_input() if case == "branch" else make_input()]
    expected = answers(plain(factory, source.state_dict()), *inputs)

    path = saved(source, tmp_path / "w.safetensors")
    torch.save(source.state_dict(), tmp_path / "w.pt")
    assert equal(answers(Weights(path).module(factory), *inputs), expected)
    assert equal(answers(Weights(tmp_path / "w.pt").module(factory), *inputs), expected)

    mapped = Weights(path).module(factory)
    for order, predict in (("traced", lambda: answers(mapped, inputs[0])), ("registered", None)):
        weights = make_pack(path if predict else tmp_path / "w.pt", mapped, predict)
        assert weights._pack.index.order == order
        # It was just written: nothing is waited for.
        there = weights.module(factory)
        assert equal(answers(there, *inputs), expected) and equal(answers(there, *inputs), expected), order
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in there.modules())
        del there
        weights = evicted(weights)
        streamed = weights.module(factory)
        assert equal(answers(streamed, *inputs), expected), order  # the first pass, with hooks, and the second
        assert equal(answers(streamed, *inputs), expected), order
        assert not streamed.training and not any(p.requires_grad for p in streamed.parameters())
        weights._stream.close()
        answers(streamed, *inputs)
    assert hooks() == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "rewarm-loader"]


def test_parameters_are_the_file_and_buffers_are_not(tmp_path: Path, make_pack: Any) -> None:
    path = saved(changed(Conv), tmp_path / "w.safetensors")
    weights = make_pack(path, Conv())
    one, other = weights.module(Conv), weights.module(Conv)
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert a.data_ptr() == b.data_ptr(), name
    for (name, a), (_, b) in zip(one.named_buffers(), other.named_buffers(), strict=True):
        assert a.data_ptr() != b.data_ptr(), name
    one.train()
    one(images())  # writes statistics
    assert not torch.equal(one.body[1].running_mean, other.body[1].running_mean)


def test_ties_stay(tmp_path: Path, make_pack: Any) -> None:
    source = changed(Transformer)
    torch.save(source.state_dict(), tmp_path / "w.pt")  # here with both names
    weights = make_pack(tmp_path / "w.pt", source)
    assert len(weights._pack.index.tied) == 1
    for model in (weights.module(Transformer), Weights(tmp_path / "w.pt").module(Transformer)):
        assert model.head.weight is model.tokens.weight


def test_the_last_of_two_values_of_a_tied_parameter_counts(tmp_path: Path, make_pack: Any) -> None:
    state = {name: tensor.clone() for name, tensor in changed(Transformer).state_dict().items()}
    state["head.weight"] += 1.0
    torch.save(state, tmp_path / "w.pt")
    x = tokens()
    expected = answers(plain(Transformer, state), x)
    assert equal(answers(Weights(tmp_path / "w.pt").module(Transformer), x), expected)
    assert equal(answers(make_pack(tmp_path / "w.pt", Transformer()).module(Transformer), x), expected)


def test_what_is_not_contiguous_in_a_checkpoint_is_so_in_memory(tmp_path: Path) -> None:
    weight = torch.randn(5, 7)
    torch.save({"weight": weight.T, "bias": torch.arange(14.0)[::2]}, tmp_path / "w.pt")
    model = Weights(tmp_path / "w.pt").module(nn.Linear, 5, 7)
    assert model.weight.is_contiguous() and torch.equal(model.weight, weight.T) and model.bias.is_contiguous()


def test_old_checkpoints_may_lack_what_torch_adds_by_itself(tmp_path: Path) -> None:
    source = changed(Conv)
    state = {name: tensor for name, tensor in source.state_dict().items() if "num_batches" not in name}
    safetensors.save_file(state, tmp_path / "w.safetensors")
    x = images()
    assert equal(answers(Weights(tmp_path / "w.safetensors").module(Conv), x), answers(plain(Conv, state), x))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("a.weight"), "lacks a.weight"),
        (lambda s: s.update(other=torch.zeros(1)), "has no other"),
        (lambda s: s.update({"a.bias": s["a.bias"].double()}), r"a.bias is F64 \[6\] in the file and F32 \[6\]"),
        (lambda s: s.update({"a.bias": torch.zeros(7)}), r"a.bias is F32 \[7\] in the file and F32 \[6\]"),
        (lambda s: s.clear(), "lacks late, a.weight, a.bias, b.weight, b.bias|holds a"),
    ],
)
def test_what_does_not_fit_is_named(change: Any, text: str, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in Twice().state_dict().items() if not name.startswith("again")}
    change(state)
    safetensors.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BadDefinition, match=text):
        Weights(tmp_path / "w.safetensors").module(Twice)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(BadDefinition, match=text):
        Weights(tmp_path / "w.pt").module(Twice)


def test_what_a_plain_build_would_not_fit_is_named_as_well(tmp_path: Path) -> None:
    safetensors.save_file({"part.weight": torch.zeros(6, 6)}, tmp_path / "w.safetensors")
    with pytest.raises(BadDefinition, match=r"lacks part\.bias"):
        Weights(tmp_path / "w.safetensors").module(FromValues)


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code in a pickle was run')",)


@pytest.mark.parametrize("format", [True, False])
def test_pickled_code_is_refused_and_not_run(format: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"weight": Evil()}, path, _use_new_zipfile_serialization=format)
    with pytest.raises(BadDefinition, match="pickled objects or code"):
        Weights(path).module(nn.Linear, 2, 2)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "w.pt is not a file of weights"),
        (b"no zip and no pickle", "w.pt is not a file of weights"),
        (pickle.dumps([1, 2]), "w.pt is not a file of weights"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(BadDefinition, match=text):
        Weights(tmp_path / "w.pt").module(nn.Linear, 2, 2)


@pytest.mark.parametrize(
    "thing", [nn.Linear(2, 2), [torch.zeros(2)], {"epoch": 3}, {"model": {"weight": torch.ones(1)}}]
)
def test_only_state_dicts_are_read(thing: Any, tmp_path: Path) -> None:
    torch.save(thing, tmp_path / "w.pt")
    with pytest.raises(BadDefinition, match="state_dict"):
        Weights(tmp_path / "w.pt").module(nn.Linear, 2, 2)


def damaged(whole: bytes) -> dict[str, bytes]:
    (length,) = struct.unpack("<Q", whole[:8])
    lying = whole[8 : 8 + length].replace(b'"shape":[2,2]', b'"shape":[2,3]')
    return {
        "cut short": whole[:-3],
        "header longer than the file": struct.pack("<Q", 1 << 40) + whole[8:],
        "header is no JSON": whole[:8] + b"x" * length + whole[8 + length :],
        "shape and size differ": whole[:8] + lying + whole[8 + length :],
        "seven bytes": whole[:7],
    }


@pytest.mark.parametrize("damage", damaged(struct.pack("<Q", 0)))
def test_a_damaged_safetensors_file_is_refused_before_it_is_read(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.save_file({"weight": torch.ones(2, 2)}, path)
    path.write_bytes(damaged(path.read_bytes())[damage])
    with pytest.raises(BadDefinition, match=r"w\.safetensors is not a safetensors file"):
        Weights(path).module(nn.Linear, 2, 2, bias=False)


def test_tensors_at_odd_places_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    header = (
        b'{"flag":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    )
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x07" + struct.pack("<2f", 1.5, -2.0))
    found = checkpoints.file_tensors(path)
    assert found["x"].tolist() == [1.5, -2.0] and found["flag"].tolist() == [7]


def test_a_factory_that_makes_no_module(tmp_path: Path) -> None:
    path = saved(nn.Linear(2, 2), tmp_path / "w.safetensors")
    with pytest.raises(BadDefinition, match=r"weights\.module wants a torch\.nn\.Module"):
        Weights(path).module(dict)
    with pytest.raises(ZeroDivisionError):
        Weights(path).module(lambda: 1 // 0)


def test_building_calls_no_initialiser_and_does_not_load_the_compiler(tmp_path: Path) -> None:
    """The first nn.Embedding on "meta" imports torch._dynamo, 0.8 s; here a test may have done that already."""
    code = """
import sys, torch
from torch import nn
from rewarm.worker import modules

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm, self.bn = nn.Embedding(5, 4, padding_idx=0), nn.LayerNorm(4), nn.BatchNorm1d(4)
        self.line, self.rnn, self.attention = nn.Linear(4, 4), nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)
        nn.init.trunc_normal_(self.line.weight)
        nn.init.xavier_uniform_(self.line.weight)
        self.line.weight.data.normal_(0.0, 0.02)
        self.line.bias.data.zero_()

state = Net().state_dict()
before = torch.get_rng_state()
made = modules.load(lambda: Net().to("cpu").bfloat16().float(), (), {}, state)
assert torch.equal(torch.get_rng_state(), before), "something was initialised"
assert made.line.weight.data_ptr() == state["line.weight"].data_ptr(), "built with values"
loaded = [name for name in ("torch._dynamo", "sympy") if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_mode_is_gone_afterwards(tmp_path: Path) -> None:
    path = saved(nn.Linear(2, 2), tmp_path / "w.safetensors")
    for factory in (lambda: nn.Linear(2, 2), lambda: 1 // 0):
        try:
            Weights(path).module(factory)
        except ZeroDivisionError:
            pass
        assert not torch_module._global_parameter_registration_hooks
        assert torch.nn.init.ones_(torch.zeros(2)).tolist() == [1.0, 1.0] and not nn.Linear(1, 1).weight.is_meta
        for kind in (nn.Linear, nn.Embedding, nn.LayerNorm, nn.LSTM, nn.Conv2d, nn.BatchNorm1d):
            assert kind.reset_parameters.__name__ == "reset_parameters"


def test_parts_with_a_way_of_their_own_are_loaded_that_way(tmp_path: Path, make_pack: Any) -> None:
    class Halved(nn.Linear):
        """Its file holds twice its values."""

        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            state[prefix + "bias"] = state[prefix + "bias"] / 2
            super()._load_from_state_dict(state, prefix, *rest)

    class Listing(nn.Linear):
        """It keeps what it is given."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "bias":
                self.__dict__["kept"] = value

    def hooked() -> nn.Module:
        line = nn.Linear(2, 2)
        line.register_load_state_dict_pre_hook(lambda _, state, prefix, *rest: state[prefix + "bias"].neg_())
        return line

    bias = torch.tensor([2.0, 4.0])
    torch.save({"weight": torch.ones(2, 2), "bias": bias}, tmp_path / "w.pt")
    weights = make_pack(tmp_path / "w.pt", nn.Linear(2, 2))
    assert weights.module(lambda: Halved(2, 2)).bias.tolist() == [1.0, 2.0]
    listing = weights.module(lambda: Listing(2, 2))
    assert listing.kept is listing.bias and listing.bias.tolist() == [2.0, 4.0]
    state = {"weight": torch.ones(2, 2), "bias": bias.clone()}
    assert modules.load(hooked, (), {}, state).bias.tolist() == [-2.0, -4.0]


def test_a_message_names_five_tensors_at_most() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(5)))
    with pytest.raises(BadDefinition, match=r"lacks 0\.weight, 0\.bias, 1\.weight, 1\.bias, 2\.weight and 5 more"):
        modules.load(lambda: model, (), {}, {})


def private_bytes() -> int:
    """What RLIMIT_DATA, an instance's limit of memory, counts."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))


def test_a_model_costs_no_memory_of_its_own(tmp_path: Path, make_pack: Any) -> None:
    def net() -> Any:
        return nn.Sequential(nn.Linear(2048, 4096), nn.Linear(4096, 2048))

    path = saved(net(), tmp_path / "w.safetensors")
    weights = make_pack(path, net())
    before = private_bytes()
    model = weights.module(net)
    answers(model, torch.ones(1, 2048))
    weights._stream.close()
    assert private_bytes() - before < 16 << 20 < 64 << 20 < path.stat().st_size
