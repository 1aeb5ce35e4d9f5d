"""Where a training stands: one optimiser step, and the file that keeps networks, optimiser and numbers; no pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from suite.errors import InputError
from suite.files import atomic_file


def descend(
    loss: Tensor, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, ema: float, step: int
) -> None:
    """Step number `step` (from 0) down the gradient of `loss`, clipped to norm 1; the average follows with decay `ema`.

    At the start the average follows faster, so as not to remember the first weights for long.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    decay = min(ema, (1 + step) / (10 + step))
    with torch.no_grad():  # else the average would carry the history of every step
        torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)


def save_checkpoint(
    path: Path, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write networks, optimiser and the plain `state` (with its `config`), atomically."""
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in values.items()}
    with atomic_file(path) as part:
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata={"state": json.dumps(state)})


def load_checkpoint(
    path: Path,
    net: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    same: Callable[[dict[str, Any]], bool],
) -> dict[str, Any]:
    """Put networks and optimiser back where they stood; returns the plain state.

    Args:
        same: whether the `config` of the checkpoint makes the training that is to go on.

    Raises:
        InputError: there is none, it is damaged, or another configuration made it.
    """
    if not path.exists():
        raise InputError(f"nothing to resume: there is no checkpoint {path}")
    try:
        with safe_open(path, "pt") as f:
            state: dict[str, Any] = json.loads((f.metadata() or {})["state"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - safe_open is no mapping
        config = state["config"]
    except (SafetensorError, OSError, KeyError, ValueError):
        raise InputError(f"the checkpoint {path} is damaged; start without --resume") from None
    if not same(config):
        raise InputError(f"the checkpoint {path} was made by another configuration; start without --resume")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    net.load_state_dict(part("net."))
    average.load_state_dict(part("average."))
    adam: dict[int, dict[str, Tensor]] = {}
    weights = list(net.parameters())
    for key, value in part("adam.").items():
        index, name = key.split(".", 1)
        like = weights[int(index)] if value.ndim else value  # in the weights' memory order: mixed orders are slow
        adam.setdefault(int(index), {})[name] = torch.empty_like(like, requires_grad=False).copy_(value)
    optimizer.load_state_dict({"state": adam, "param_groups": optimizer.state_dict()["param_groups"]})
    return state
