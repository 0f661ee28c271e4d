"""torch modules without their initial values: built on the meta device, given the tensors of a checkpoint.

What a constructor makes is of two kinds. Parameters are replaced by the checkpoint, so they get a shape and no memory,
and what initialises them is skipped. Everything else (position ids, rotary tables, causal masks, statistics) is
computed as usual, on the CPU: much of it is in no checkpoint. Where a constructor computes something else from its
parameters, the module is built and loaded in the plain way instead, which is slower and costs memory but is right.
"""

from __future__ import annotations

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from rewarm.errors import BadDefinition
from rewarm.worker.checkpoints import CODES

_NAMED_MAX = 5  # tensors in a message
_SEED = 0x72657761726D  # that no constructor would choose

#: Methods that only set values: of a tensor without memory they have nothing to do. Left to torch, the first of them
#: on the meta device would import its compiler, 0.8 s.
_SETTERS = frozenset({
    "normal_", "uniform_", "fill_", "zero_", "copy_", "add_", "sub_", "mul_", "div_", "clamp_", "erfinv_", "random_",
    "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_", "neg_", "exp_", "log_", "sqrt_", "pow_",
    "masked_fill_", "clamp_min_", "clamp_max_", "fill_diagonal_", "tril_", "triu_",
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__",
})  # fmt: skip
_CASTS = {
    "half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32, "double": torch.float64,
    "cpu": None, "contiguous": None,
}  # fmt: skip


#: Modules of torch's own whose `reset_parameters` does nothing but initialise parameters, and statistics once more.
_RESETTING: tuple[Any, ...] = (
    nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU,
    nn.RNNBase, nn.RNNCellBase, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase,
)  # fmt: skip

#: That of norms only adds what old files lack.
_PLAIN_LOADS = (nn.Module._load_from_state_dict, nn.modules.batchnorm._NormBase._load_from_state_dict)

#: What most attributes of modules are.
_NO_TENSORS = frozenset({bool, int, float, str, type(None), dict, OrderedDict, set, torch.dtype})


def load(factory: Callable[..., Any], args: Any, kwargs: Any, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The module that `factory(*args, **kwargs)` makes, with the values of `tensors`: eval mode, no gradients.

    Parameters are the given tensors themselves, not copies; buffers are copies, since modules write to them. Raises
    BadDefinition, naming tensors, if they do not fit; whatever the factory raises.
    """
    module = _without_values(factory, args, kwargs)
    if module is not None:
        assign(module, tensors)
    else:
        module = _made(factory, args, kwargs)
        _check_fit(module, module.state_dict(keep_vars=True), tensors)
        _put(module, dict(tensors), assign=False)
        module.requires_grad_(False)
    return module.eval()


def assign(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make the tensors the module's own; tied parameters stay tied. Raises BadDefinition, naming tensors."""
    if _assign_directly(module, tensors):
        return
    own = module.state_dict(keep_vars=True)
    _check_fit(module, own, tensors)
    state = dict(tensors)
    shared: dict[int, nn.Parameter] = {}
    # A plain load copies one after the other, so of several names of one parameter the last that is there holds.
    for name, value in own.items():
        if isinstance(value, nn.Parameter) and name in tensors:
            shared[id(value)] = nn.Parameter(tensors[name], requires_grad=False)
    for name, value in own.items():
        if isinstance(value, nn.Parameter):
            if id(value) in shared:
                state[name] = shared[id(value)]
        elif name in tensors:
            state[name] = tensors[name].clone()
    for name, part in module.named_modules():
        if getattr(part, "max_norm", None) is not None:  # an embedding that scales the rows it reads, in their place
            weight = state.get(f"{name}.weight".lstrip("."))
            if weight is not None:
                weight.data = weight.data.clone()
    module.requires_grad_(False)  # of whole numbers there are no gradients
    _put(module, state, assign=True)
    module.requires_grad_(False)  # whatever hooks made of them


def _assign_directly(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> bool:
    """`assign` in a third of the time, where all names and kinds fit and no part has a way of its own; else False."""
    parts = _plain_parts(module)
    if parts is None:
        return False
    places: dict[str, tuple[dict[str, Any], str, torch.Tensor]] = {}
    for prefix, part in parts:
        kept = part._non_persistent_buffers_set
        for held in (part._parameters, part._buffers):
            for key, value in held.items():
                if value is not None and key not in kept:
                    places[prefix + key] = (held, key, value)
    if places.keys() != tensors.keys():
        return False
    shared: dict[int, nn.Parameter] = {}
    for name, (_, _, value) in places.items():
        tensor = tensors[name]
        if tensor.dtype != value.dtype or tensor.shape != value.shape:
            return False
        if isinstance(value, nn.Parameter):  # of several names of one parameter the last holds
            shared[id(value)] = nn.Parameter(tensor, requires_grad=False)
    for name, (owner, key, value) in places.items():
        owner[key] = shared[id(value)] if id(value) in shared else tensors[name].clone()
    return True


def _plain_parts(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """All parts after the prefix of their names; None if torch's own loading would do anything special with one."""
    found = [("", module)]
    for prefix, part in found:  # it grows meanwhile
        kind = type(part)
        if kind._load_from_state_dict not in _PLAIN_LOADS or type(part._parameters) is not dict:  # not of TorchScript
            return None
        if kind.__setattr__ is not nn.Module.__setattr__ or kind.load_state_dict is not nn.Module.load_state_dict:
            return None
        if kind.set_extra_state is not nn.Module.set_extra_state or getattr(part, "max_norm", None) is not None:
            return None  # the latter scales the rows that it reads, in their place
        if part._load_state_dict_pre_hooks or part._load_state_dict_post_hooks:
            return None
        found += [(f"{prefix}{name}.", child) for name, child in part._modules.items() if child is not None]
    return found


def _put(module: nn.Module, state: dict[str, torch.Tensor], assign: bool) -> None:
    # Not strict: what is missing is ours to say, and the hooks of old BatchNorms may fill it in.
    try:
        found = module.load_state_dict(state, strict=False, assign=assign)
    except RuntimeError as error:
        raise BadDefinition(
            f"the weights do not fit {type(module).__name__}: {' '.join(str(error).split())}"
        ) from error
    problems = []
    if missing := _without_tied(found.missing_keys, module, state):
        problems.append(f"the file lacks {_some(missing)}")
    if found.unexpected_keys:
        problems.append(f"the module has no {_some(found.unexpected_keys)}")
    if problems:
        raise BadDefinition(f"the weights do not fit {type(module).__name__}: {'; '.join(problems)}")


def _without_tied(missing: list[str], module: nn.Module, state: Mapping[str, torch.Tensor]) -> list[str]:
    """Those names of which no other name of the same parameter is in `state`."""
    if not missing:
        return []
    named = dict(module.named_parameters(remove_duplicate=False))
    given = {id(parameter) for name, parameter in named.items() if name in state}
    return [name for name in missing if name not in named or id(named[name]) not in given]


def _check_fit(module: nn.Module, own: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Dtypes and shapes. A plain load would convert dtypes; here the file is the memory, so it cannot."""
    wrong = []
    for name, value in own.items():
        tensor = tensors.get(name)
        if tensor is None or not isinstance(value, torch.Tensor) or nn.parameter.is_lazy(value):
            continue
        if tensor.dtype != value.dtype or tensor.shape != value.shape:
            wrong.append(f"{name} is {_kind(tensor)} in the file and {_kind(value)} in the module")
    if wrong:
        text = "; ".join(wrong[:_NAMED_MAX]) + (f"; and {len(wrong) - _NAMED_MAX} more" if wrong[_NAMED_MAX:] else "")
        raise BadDefinition(f"the weights do not fit {type(module).__name__}: {text}; build the module as it was saved")


def _kind(tensor: torch.Tensor) -> str:
    return f"{CODES.get(tensor.dtype, tensor.dtype)} {list(tensor.shape)}"


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


# ---------------------------------------------------------------- building


def _made(factory: Callable[..., Any], args: Any, kwargs: Any) -> nn.Module:
    module = factory(*args, **kwargs)
    if not isinstance(module, nn.Module):
        name = getattr(factory, "__name__", repr(factory))
        raise BadDefinition(f"weights.module wants a torch.nn.Module or what makes one; {name} made {module!r:.80}")
    return module


def _without_values(factory: Callable[..., Any], args: Any, kwargs: Any) -> nn.Module | None:
    """The module with its parameters on the meta device, or None if it has to be built with values."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(_SEED)
    handle = register_module_parameter_registration_hook(_drop_values)
    try:
        with _no_resets(), _SkipValues():
            module = _made(factory, args, kwargs)
    except BadDefinition:
        raise
    except Exception as error:  # if it is not the lack of values, the plain way will raise it too
        print(f"building the module with its initial values, since without: {error!r:.200}", file=sys.stderr)
        return None
    finally:
        handle.remove()
        seed = generator.initial_seed()
        generator.set_state(state)
    if seed != _SEED:
        # It seeds itself, so the random numbers that it keeps depend on those that it drew before and we skipped.
        return None
    return None if _lacks_values(module) else module


def _drop_values(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """When a module registers a parameter: the same object, from now on without memory."""
    if parameter is None:
        return
    with torch._C.DisableTorchFunction():
        if parameter.is_meta:
            return
        if type(parameter) is not nn.Parameter:
            raise TypeError(f"{name} is a {type(parameter).__name__}")
        empty = _shape_only(parameter, parameter.dtype)
        empty = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        torch.utils.swap_tensors(parameter, empty)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _no_resets() -> Iterator[None]:
    """What `_SkipValues` does in any case, one call of torch after the other."""
    own = [(kind, kind.reset_parameters) for kind in _RESETTING]
    for kind in _RESETTING:
        kind.reset_parameters = _reset_nothing
    try:
        yield
    finally:
        for kind, reset in own:
            kind.reset_parameters = reset


def _reset_nothing(module: nn.Module) -> None:
    """In place of `reset_parameters`."""


class _SkipValues(TorchFunctionMode):
    """Sees every call of torch, and leaves out what would only set values of tensors that have none.

    What the constructors of torch's own modules make by `torch.empty` are parameters, all of it: they get no memory.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.empty:
            caller = sys._getframe(1)
            if caller.f_code.co_name == "__init__" and caller.f_globals["__name__"].startswith("torch.nn.modules."):
                kwargs = {**kwargs, "device": "meta"}
            return function(*args, **kwargs)
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, torch.Tensor) and target.is_meta:
            name = getattr(function, "__name__", "")
            if name in _SETTERS or getattr(function, "__module__", None) == "torch.nn.init":
                return target
            if name == "to":
                return _cast(target, torch._C._nn._parse_to(*args[1:], **kwargs)[1])
            if name in _CASTS:
                return _cast(target, _CASTS[name])
        return function(*args, **kwargs)


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """`tensor.to(…)`, but it stays where it is: every device is the CPU."""
    return tensor if dtype in (None, tensor.dtype) else _shape_only(tensor, dtype)


def _shape_only(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=dtype, device="meta")  # empty_like would import sympy, 0.5 s


def _lacks_values(module: nn.Module) -> bool:
    """Whether something other than a parameter is left on the meta device that no checkpoint will replace."""
    parts = list(module.modules())
    if any(buffer is not None and buffer.is_meta for part in parts for buffer in part._buffers.values()):
        buffers = {name for name, buffer in module.named_buffers() if buffer.is_meta}
        if not module.state_dict(keep_vars=True).keys() >= buffers:
            return True
    held = []
    for part in parts:
        for value in vars(part).values():
            if type(value) in _NO_TENSORS:
                continue
            if isinstance(value, torch.Tensor):
                held.append(value)
            elif isinstance(value, list | tuple):
                held += [each for each in value if isinstance(each, torch.Tensor)]
    if not held:
        return False
    parameters = {id(parameter) for parameter in module.parameters()}
    return any(tensor.is_meta and id(tensor) not in parameters for tensor in held)
