"""The card of a prior trained elsewhere: its network knows [-1, 1] only, so the user says what that means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from suite.config import read_yaml
from suite.errors import InputError
from suite.foreign.chain import ChainNetwork
from suite.prior import Card, Prior

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


class ForeignCard(BaseModel):
    """What the user must, and may, say about a network from elsewhere (YAML).

    A value in `unit` is `offset + scale * u` for a network value `u` in [-1, 1].
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    unit: str
    scale: float = Field(gt=0)
    offset: float
    channels: int = Field(ge=1)
    pixel_size_mm: tuple[float, float] | None = None
    name: str | None = None
    domain: str = "any"
    description: str = ""
    licence: str = "not stated"
    data: list[str] = []
    limits: list[str] = []
    sigma_data: float = Field(default=0.5, gt=0)


@contextmanager
def faults_in(where: object) -> Iterator[None]:
    """Tell the first fault pydantic finds inside as one sentence about `where`."""
    try:
        yield
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"]))
        reason = fault["msg"].removeprefix("Value error, ")
        given = "" if fault["type"] in ("missing", "value_error") else f", not {str(fault['input'])[:60]!r}"
        raise InputError(f"{where}: {field and field + ': '}{reason}{given}") from None


def read_mapping(source: Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Settings from YAML or a mapping, and what to call them."""
    return (read_yaml(source), str(source)) if isinstance(source, Path) else (dict(source), "the settings given")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        InputError: missing, damaged, or a pickle.
    """
    if path.suffix in _PICKLES:
        raise InputError(
            f"{path} is a pickle, which can run code when opened, and is not read here; if you trust it, convert it: "
            'python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path.name}', weights_only=True), '{path.with_suffix('.safetensors').name}')\""
        )
    if not path.is_file():
        raise InputError(f"there is no file {path}; the weights are expected there, as safetensors")
    try:
        with safe_open(path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error})") from error


def assemble(
    net: ChainNetwork, weights: Mapping[str, Tensor], card: Path | Mapping[str, Any], source: str, size: object
) -> Prior:
    """The prior: weights into the network, the user's card and the network's own facts into one card.

    Args:
        net: built from the foreign settings.
        weights: by internal name (suite/foreign/unet.py).
        card: the user's, YAML or a mapping; see `ForeignCard`.
        source: what to call the weights in messages.
        size: image size it was trained on, for the card; None when unknown.

    Raises:
        InputError: a fault in the card; weights missing, too many, of the wrong shape or not finite; other channels.
    """
    data, where = read_mapping(card)
    with faults_in(f"the card {where}" if isinstance(card, Path) else "the card"):
        given = ForeignCard.model_validate(data)
    layout = net.network.layout
    if not given.channels == layout.in_channels == layout.out_channels:
        raise InputError(
            f"{source} takes {layout.in_channels} and returns {layout.out_channels} channel(s); "
            f"its card says {given.channels}"
        )
    _check_weights({k: tuple(v.shape) for k, v in net.network.state_dict().items()}, weights, source)
    net.network.load_state_dict({k: v.float() for k, v in weights.items()})
    trained = f"trained elsewhere{f' on images of {size} pixels' if size else ''}"
    facts = given.model_dump() | {
        "name": given.name or Path(source).stem,
        "limits": [*given.limits, f"{trained}; attention and group normalisation tie it to images of about that size"],
        "value_range": (given.offset - given.scale, given.offset + given.scale),
        "architecture": net.architecture,
        "network": net.settings,
        "process": net.process.name,
        "process_parameters": net.process.parameters,
        "head": net.denoise.head,
        "sigma_range": net.sigma_range,
        "validation_data": [],
        "training": {},
        "validation": {},
    }
    return Prior(net, Card(**facts))


def _check_weights(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], source: str) -> None:
    missing, extra = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    if missing or extra:
        examples = " and ".join([f"{k} is missing" for k in missing[:1]] + [f"{k} is too many" for k in extra[:1]])
        raise InputError(f"the weights of {source} do not fit its settings: {examples}")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            found = tuple(weights[name].shape)
            raise InputError(f"the weights of {source} do not fit its settings: {name} is {found}, expected {shape}")
        if not bool(torch.isfinite(weights[name]).all()):
            raise InputError(f"the weights of {source} contain NaN or infinity in {name}; the file is damaged")
