"""Where training stands, as one safetensors file beside the output: networks, optimiser, numbers; no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from suite.errors import InputError
from suite.files import atomic_file


def save_checkpoint(
    path: Path, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write networks, optimiser and the plain `state`, atomically."""
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in values.items()}
    with atomic_file(path) as part:
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata={"state": json.dumps(state)})


def load_checkpoint(
    path: Path, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> dict[str, Any]:
    """Put networks and optimiser back where they stood; returns the plain state.

    Raises:
        InputError: there is none, it is damaged, or another configuration made it (the iterations may differ).
    """
    if not path.exists():
        raise InputError(f"nothing to resume: there is no checkpoint {path}")
    try:
        with safe_open(path, "pt") as f:
            state: dict[str, Any] = json.loads((f.metadata() or {})["state"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError, KeyError, ValueError):
        raise InputError(f"the checkpoint {path} is damaged; start without --resume") from None
    if _shaping(state["config"]) != _shaping(config):
        raise InputError(f"the checkpoint {path} was made by another configuration; start without --resume")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    net.load_state_dict(part("net."))
    average.load_state_dict(part("average."))
    adam: dict[int, dict[str, Tensor]] = {}
    for key, value in part("adam.").items():
        index, name = key.split(".", 1)
        adam.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": adam, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def _shaping(config: dict[str, Any]) -> dict[str, Any]:
    """What decides the course of training; words on the card and the number of anchors do not."""
    free = ("iterations", "anchors", "execute", "name", "description", "licence", "limits")
    return json.loads(json.dumps({key: value for key, value in config.items() if key not in free}))  # type: ignore[no-any-return]
