"""What a deployed function is: its specification and its immutable revision."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from rewarm.errors import BadDefinition
from rewarm.facts.lang_key import LangKey as LangKey
from rewarm.facts.pack import PackFacts

Kind = Literal["predict", "handler"]
Runtime = Literal["python", "nodejs"]
Isolation = Literal["process", "microvm"]
Pin = Literal["auto", "none", "all"] | int

VM_BYTES_MIN = 256 << 20  # a guest with numpy imported, and some to spare
SAMPLES_MAX = 16

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")

#: Open Inference Protocol datatype → numpy dtype name. BYTES travels as length-prefixed strings.
DATATYPES: dict[str, str] = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64", "BYTES": "object",
}  # fmt: skip
DTYPES: dict[str, str] = {dtype: datatype for datatype, dtype in DATATYPES.items()}


def check_name(name: str) -> str:
    """A function name that is safe in a URL, a path and a metric label. Raises BadDefinition."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise BadDefinition(
            f"{name!r} is not a function name: use 1 to 64 letters, digits, '-', '_' or '.', "
            "beginning and ending with a letter or digit"
        )
    return name


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output: numpy `dtype` name and the shape of ONE row (without the batch axis).

    A dimension of -1 may have any length. `Tensor("float32", [784])` is a batch of shape [n, 784].
    """

    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BadDefinition(f"unknown dtype {self.dtype!r}; use one of {', '.join(DTYPES)}")
        shape = tuple(self.shape) if isinstance(self.shape, tuple | list) else (None,)
        if not all(type(size) is int for size in shape):
            raise BadDefinition(f"a shape is a list of whole numbers, not {self.shape!r}")
        if any(size < -1 or size == 0 for size in shape):
            raise BadDefinition(f"dimensions are positive, or -1 for any length: {list(shape)}")
        object.__setattr__(self, "shape", shape)

    @property
    def datatype(self) -> str:
        """The Open Inference Protocol's name of the dtype, e.g. FP32."""
        return DTYPES[self.dtype]


@lru_cache(maxsize=1024)
def _lang_key(packages: tuple[str, ...], runtime: str, vm_bytes: int) -> LangKey:
    """One object per key where it can be: finding it in a dict then takes no comparison."""
    return LangKey(packages, runtime, vm_bytes)


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy by name with its parameters, as written in a decorator, a file or on the command line."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **dict(self.params)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PolicySpec:
        return PolicySpec(str(data["name"]), {key: value for key, value in data.items() if key != "name"})


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """Everything that a person says about a function. Durations in seconds, sizes in bytes."""

    name: str
    kind: Kind
    entry: str  # "module:Attribute" inside the revision's code folder
    batched: bool = False  # handler only: takes a list of events
    memory_bytes: int = 1 << 30
    timeout_s: float = 60.0
    slo_s: float | None = None
    batching: PolicySpec = field(default_factory=lambda: PolicySpec("none"))
    keepalive: PolicySpec | None = None  # None: the server's policy
    preload: tuple[str, ...] = ()
    weights: str | None = None  # path relative to the code folder
    inputs: tuple[tuple[str, Tensor | None], ...] = ()  # in order; None: not declared
    outputs: tuple[tuple[str, Tensor | None], ...] = ()
    max_instances: int = 2
    queue_max: int = 1024
    env: tuple[tuple[str, str], ...] = ()
    runtime: Runtime = "python"
    pin: Pin = "auto"  # of the weights, what stays in memory: what is worth it, nothing, all, or so many bytes
    isolation: Isolation = "process"
    samples: tuple[str, ...] = ()  # JSON files in the code folder: bodies of calls that warm a snapshot up

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.kind not in ("predict", "handler"):
            raise BadDefinition(f"kind must be 'predict' or 'handler', not {self.kind!r}")
        if self.entry.count(":") != 1 or not all(self.entry.split(":")):
            raise BadDefinition(f"entry must be 'module:Attribute', not {self.entry!r}")
        whole = {"memory": self.memory_bytes, "max_instances": self.max_instances, "queue_max": self.queue_max}
        for label, count in whole.items():
            if type(count) is not int:
                raise BadDefinition(f"{label} must be a whole number, not {count!r}")
        if self.memory_bytes < 16 << 20:
            raise BadDefinition(f"memory must be at least 16MB, not {self.memory_bytes} bytes")
        for label, value in (("timeout", self.timeout_s), ("slo", self.slo_s)):
            if value is None and label == "slo":
                continue
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise BadDefinition(f"{label} must be more than 0 seconds, not {value!r}")
        if not 1 <= self.max_instances <= 1000:
            raise BadDefinition(f"max_instances must be 1 to 1000, not {self.max_instances}")
        if not 1 <= self.queue_max <= 1_000_000:
            raise BadDefinition(f"queue_max must be 1 to 1000000, not {self.queue_max}")
        self._check_runtime()
        pin = self.pin
        if pin not in ("auto", "none", "all") and (type(pin) is not int or pin < 0):
            raise BadDefinition(f"pin must be 'auto', 'none', 'all' or a number of bytes, not {pin!r}")

    def _check_runtime(self) -> None:
        if self.runtime not in ("python", "nodejs"):
            raise BadDefinition(f"runtime must be 'python' or 'nodejs', not {self.runtime!r}")
        if self.runtime == "nodejs" and self.kind != "handler":
            raise BadDefinition(f"a function of the runtime 'nodejs' is a handler, not {self.kind!r}")
        if self.runtime == "nodejs" and self.preload:
            raise BadDefinition("preload names packages of Python; leave it out for the runtime 'nodejs'")
        if self.isolation not in ("process", "microvm"):
            raise BadDefinition(f"isolation must be 'process' or 'microvm', not {self.isolation!r}")
        if self.isolation == "microvm" and self.runtime == "nodejs":
            raise BadDefinition("a function of the runtime 'nodejs' runs in a process; leave out isolation='microvm'")
        if len(self.samples) > SAMPLES_MAX:
            raise BadDefinition(
                f"samples: {len(self.samples)} are given and at most {SAMPLES_MAX} are used, since each restores the "
                "snapshot once; leave out those that are like others"
            )
        for path in self.samples:
            if not isinstance(path, str) or not path or path.startswith("/") or ".." in path.split("/"):
                raise BadDefinition(f"samples are files in the code folder, named relative to it, not {path!r}")
        _ = self.lang_key  # raises for what is not the name of a package

    @property
    def lang_key(self) -> LangKey:
        """Functions on arrays need numpy in their Lang layer whether they say so or not."""
        packages = (*self.preload, "numpy") if self.kind == "predict" else self.preload
        return _lang_key(packages, self.runtime, self.vm_bytes)

    @property
    def vm_bytes(self) -> int:
        """The memory of its micro-VM: a power of two, so that few sizes of Lang layers serve all. 0 for a process."""
        if self.isolation == "process":
            return 0
        return max(VM_BYTES_MIN, 1 << (self.memory_bytes - 1).bit_length())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` is its inverse. The registry and the wire carry this."""

        def tensors(items: tuple[tuple[str, Tensor | None], ...]) -> list[dict[str, Any]]:
            return [{"name": n, **({"dtype": t.dtype, "shape": list(t.shape)} if t else {})} for n, t in items]

        return {
            "name": self.name, "kind": self.kind, "entry": self.entry, "batched": self.batched,
            "memory_bytes": self.memory_bytes, "timeout_s": self.timeout_s, "slo_s": self.slo_s,
            "batching": self.batching.to_json(),
            "keepalive": self.keepalive.to_json() if self.keepalive else None,
            "preload": list(self.preload), "weights": self.weights,
            "inputs": tensors(self.inputs), "outputs": tensors(self.outputs),
            "max_instances": self.max_instances, "queue_max": self.queue_max, "env": dict(self.env),
            "runtime": self.runtime, "pin": self.pin, "isolation": self.isolation, "samples": list(self.samples),
        }  # fmt: skip

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> FunctionSpec:
        """Raises BadDefinition if a field is missing, unknown or of a wrong kind."""

        def tensors(items: Any) -> tuple[tuple[str, Tensor | None], ...]:
            return tuple(
                (str(i["name"]), Tensor(i["dtype"], tuple(i["shape"])) if "dtype" in i else None) for i in items
            )

        try:
            fields = dict(data)
            fields["batching"] = PolicySpec.from_json(fields["batching"])
            fields["keepalive"] = PolicySpec.from_json(fields["keepalive"]) if fields["keepalive"] else None
            fields["inputs"], fields["outputs"] = tensors(fields["inputs"]), tensors(fields["outputs"])
            fields["preload"] = tuple(fields["preload"])
            fields["samples"] = tuple(fields.get("samples", ()))  # older ones do not say
            fields["env"] = tuple(sorted((str(k), str(v)) for k, v in dict(fields["env"]).items()))
            return FunctionSpec(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise BadDefinition(f"not a function specification: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Revision:
    """One immutable deploy of a function: `digest` is the sha256 over specification, code and weights.

    `code_dir` and `weights_path` are absolute paths inside the home directory, read-only from here on.
    """

    spec: FunctionSpec
    digest: str
    version: int
    code_dir: str
    weights_path: str | None = None
    weights_bytes: int = 0
    created_at: float = 0.0  # wall time, seconds since the epoch
    pack: PackFacts | None = None  # of its weights, if they are packed

    @property
    def name(self) -> str:
        return self.spec.name
