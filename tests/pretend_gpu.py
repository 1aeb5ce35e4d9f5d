"""A GPU that is none: tensors that say they are on `cuda`, computed on the processor.

Like the real device it refuses operations on tensors of both devices and conversions to NumPy, so code that forgets to move
something fails here too, on a machine without a GPU. It proves nothing about speed or rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_ANSWERS = {
    "_lazy_init": None,
    "is_available": True,
    "synchronize": None,
    "reset_peak_memory_stats": None,
    "max_memory_allocated": 0,
    "is_bf16_supported": True,
}
_FREE_INDEX = ("index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index")  # CUDA takes indices on the CPU


class OnGPU(Tensor):
    """A tensor that reports the device `cuda:0` and holds its values on the processor."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGPU:
        held = held.resolve_conj().resolve_neg()  # below the dispatcher nobody looks at these flags any more
        plain = held.layout == torch.strided  # a sparse one passes for dense: only what it holds is computed with
        made: OnGPU = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride() if plain else None,
            storage_offset=held.storage_offset() if plain else None,
            dtype=held.dtype,
            device="meta",  # a device every build knows; `device` below tells the other
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_meta(self) -> bool:
        return False

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.held!r})"


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)]
    ours = [v for v in flat if isinstance(v, OnGPU)]
    name = func.overloadpacket.__name__
    target = kwargs.get("device") and torch.device(kwargs["device"])
    if target is not None:
        kwargs = kwargs | {"device": CPU}
    strangers = [v for v in flat if not isinstance(v, OnGPU) and v.ndim]
    moves = name in ("copy_", "_to_copy") or (name in _FREE_INDEX and isinstance(args[0], OnGPU))
    if ours and strangers and not moves:
        raise RuntimeError(f"{name}: tensors on cuda:0 and on the CPU, of shapes {[tuple(v.shape) for v in strangers]}")
    out = func(*tree_map_only(OnGPU, lambda v: v.held, args), **tree_map_only(OnGPU, lambda v: v.held, kwargs))
    # `meta` is what PyTorch itself takes ours to be on, and asks for where nobody named a device.
    on_gpu = bool(ours) if target is None or target.type == "meta" or "sparse" in name else target.type == "cuda"
    if name == "copy_":
        on_gpu = isinstance(args[0], OnGPU)
    if not on_gpu:
        return out
    known = {id(v.held): v for v in ours}  # in-place operations give back the tensor they were given
    return tree_map_only(Tensor, lambda v: known[id(v)] if id(v) in known else OnGPU(v), out)


class _Factories(TorchDispatchMode):
    """`torch.zeros(..., device="cuda")` and `.to("cuda")` of plain tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Numbered(TorchFunctionMode):
    """`cuda` without a number is asked of the driver, which is not there: it becomes `cuda:0` first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(torch.device, lambda d: CUDA if d.type == "cuda" else d, (args, kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == CUDA:  # these pass by the dispatcher
            made = args[0] if isinstance(args[0], Tensor) else func(*args, **kwargs | {"device": CPU})
            return made.to(device=CUDA, dtype=kwargs.get("dtype"))
        return func(*args, **kwargs)


@contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """Within, the device `cuda` can be used."""
    with ExitStack() as stack:
        for name, value in _ANSWERS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, value=value, **__: value))
        stack.enter_context(_Factories())
        stack.enter_context(_Numbered())
        yield CUDA
