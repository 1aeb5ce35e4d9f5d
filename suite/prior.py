"""A prior: a network, the range it works in, the process it was trained on, and the card that says so; in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from suite.denoiser import Denoiser, noise_estimate
from suite.errors import InputError
from suite.foreign.chain import ChainNetwork
from suite.masking import MaskUNet
from suite.network import TWO_HEADS, Preconditioned, UNet, bfloat16_convolutions, channels_last
from suite.process import Process, process

ARCHITECTURES: dict[str, type[UNet] | type[MaskUNet]] = {
    "suite.network.UNet": UNet,
    "suite.masking.MaskUNet": MaskUNet,
}

_STATISTICS = "statistics."


class Card(BaseModel):
    """What a prior is, what it was trained on, and what it must not be used for.

    A value in the file's unit is `offset + scale * u` for a network value `u`. `calibration` says what was measured on
    validation data after the training, and on which.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str
    domain: str
    description: str
    unit: str
    scale: float = Field(gt=0)
    offset: float
    value_range: tuple[float, float]
    pixel_size_mm: tuple[float, float] | None = None
    channels: int = Field(default=1, ge=1)
    condition_channels: int = Field(default=0, ge=0)
    architecture: str = "suite.network.UNet"
    network: dict[str, Any]
    process: str
    process_parameters: dict[str, float] = {}
    head: str = "edm"
    sigma_data: float = Field(gt=0)
    sigma_range: tuple[float, float]
    data: list[str]
    validation_data: list[str]
    licence: str
    training: dict[str, Any]
    validation: dict[str, Any]
    limits: list[str] = []
    calibration: dict[str, Any] = {}

    @model_validator(mode="after")
    def _ordered(self) -> Card:
        if not 0 < self.sigma_range[0] < self.sigma_range[1]:
            raise ValueError(f"sigma_range must be two rising positive numbers, not {self.sigma_range}")
        if not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range must be two rising numbers, not {self.value_range}")
        return self


class Prior:
    """A trained network with its card.

    Attributes:
        card: the contract.
        net: `E[x0 | z]` in network units, called as `net(z, alpha, sigma, condition)`; see `Preconditioned`.
        process: the one it was trained on.
        path, sha256: where it came from.
        statistics: further tensors of the file, those named `statistics.*` (see `suite.trust.Familiarity`).
    """

    def __init__(
        self,
        net: Preconditioned | ChainNetwork,
        card: Card,
        path: Path | None = None,
        sha256: str = "",
        statistics: dict[str, Tensor] | None = None,
    ) -> None:
        self.net: nn.Module = net.eval().requires_grad_(False)
        self.card, self.path, self.sha256 = card, path, sha256
        self.statistics = statistics or {}
        self.process: Process = (
            net.process if isinstance(net, ChainNetwork) else process(card.process, **card.process_parameters)
        )

    def to_network(self, x: Tensor) -> Tensor:
        """Physical values (the card's unit) to network values."""
        return (x - self.card.offset) / self.card.scale

    def from_network(self, u: Tensor) -> Tensor:
        """Network values to physical values (the card's unit)."""
        return self.card.offset + self.card.scale * u

    def denoiser(self, proc: Process | None = None, **options: Any) -> PriorDenoiser:
        """The prior as a denoiser of `proc` (default: the process it was trained on)."""
        return PriorDenoiser(self, proc or self.process, **options)

    def save(self, path: Path, *, half: bool = True) -> None:
        """Write weights and card, atomically; in half precision unless told otherwise or a weight exceeds its range."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.net.state_dict().items()}
        if half and all(bool(v.half().isfinite().all()) for v in tensors.values()):
            tensors = {k: v.half() for k, v in tensors.items()}
        tensors |= {f"{_STATISTICS}{k}": v.contiguous() for k, v in self.statistics.items()}
        partial = path.with_name(f".{path.name}.partial")
        save_file(tensors, partial, metadata={"card": self.card.model_dump_json()})
        partial.replace(path)


class PriorDenoiser(Denoiser):
    """`E[x0 | x_t]` by a prior's network, for any process it can serve.

    Args:
        prior: the prior; its device decides where the network runs.
        proc: the process whose states are denoised; unanchored unless the network takes a condition.
        precision: `auto` (bfloat16 where the processor multiplies it natively, else float32), `float32` or `bfloat16`.
        pixels: at most this many spatial positions go through the network at once; larger batches are split. By default what
            fills a GPU; on a processor what its caches hold, so that a large image goes alone.
        clock: context manager factory timing the network.

    Raises:
        InputError: an anchored process and a prior without a condition, or no such precision.
    """

    def __init__(
        self,
        prior: Prior,
        proc: Process,
        *,
        precision: str = "auto",
        pixels: int | None = None,
        clock: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if proc.anchored and not prior.card.condition_channels:
            raise InputError(
                f"the prior {prior.card.name} knows no degraded signal and cannot serve the process {proc.name}; "
                "use vp, vp-cosine, ve, edm or flow"
            )
        if precision not in ("auto", "float32", "bfloat16"):
            raise InputError(f"there is no precision {precision!r}; choose auto, float32 or bfloat16")
        self.prior, self.process, self.clock = prior, proc, clock
        self.evaluations = 0
        device = next(prior.net.parameters()).device
        self.pixels = pixels or (1 << 16 if device.type == "cpu" else 1 << 20)
        self.autocast = precision == "bfloat16" or (precision == "auto" and native_bfloat16(device))
        self.net = bfloat16_convolutions(prior.net) if self.autocast else prior.net

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """One network evaluation; see `predict`."""
        return self._evaluate(x, t, y)[:, : self.prior.card.channels]

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`(mean, eps)`; a network of two heads says both, and they need not agree with x."""
        out = self._evaluate(x, t, y)
        mean, eps = out[:, : x.shape[1]], out[:, x.shape[1] :]
        return mean, eps if eps.shape[1] else noise_estimate(self.process, x, t, mean, y)

    def _evaluate(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """One network evaluation, counted once for the batch.

        `y` is not used by a prior without a condition (no anchored process has such a prior).

        Raises:
            InputError: the number of channels is not the card's, or a condition is missing.
        """
        card = self.prior.card
        if x.shape[1] != card.channels:
            raise InputError(f"the prior {card.name} has {card.channels} channel(s), the signal has {x.shape[1]}")
        condition = self._condition(x, y)
        self.evaluations += 1
        z = self.process.shift(x, t, y)
        alpha, sigma = (f(t).expand(x.shape[0], *t.shape[1:]) for f in (self.process.alpha, self.process.sigma))
        size = max(1, self.pixels // max(1, x[0, 0].numel()))
        parts = []
        with self.clock(), torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            for i in range(0, len(x), size):
                chunk = slice(i, i + size)
                given = None if condition is None else condition[chunk]
                parts.append(self.net(z[chunk], alpha[chunk], sigma[chunk], given))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _condition(self, x: Tensor, y: Tensor | None) -> Tensor | None:
        card = self.prior.card
        if not card.condition_channels:
            return None
        if y is None or y.shape[1] != card.condition_channels:
            found = "none was given" if y is None else f"the one given has {y.shape[1]}"
            raise InputError(
                f"the prior {card.name} needs a degraded signal of {card.condition_channels} channel(s), and {found}"
            )
        return y.expand(len(x), *y.shape[1:])


def native_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 products run in hardware (tensor cores, AMX); elsewhere they are slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(capabilities.get("amx_bf16"))


def read_card(path: Path) -> Card:
    """The card of a prior file.

    Raises:
        InputError: not a prior file, or its card is damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no prior file {path}")
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error})") from error
    if "card" not in metadata:
        raise InputError(
            f"{path} carries no card; a prior of this suite is a safetensors file with a `card` in its metadata"
        )
    try:
        return Card.model_validate_json(metadata["card"])
    except ValidationError as error:
        first = error.errors()[0]
        where = f"card field {'.'.join(map(str, first['loc']))}" if first["loc"] else "card"
        raise InputError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def load_prior(path: Path, device: torch.device | str = "cpu", **expected: Any) -> Prior:
    """Load a prior and check its card against what the caller needs.

    Args:
        path: safetensors file.
        device: where the network will run.
        expected: card fields that must have exactly these values, e.g. `unit="HU"`, `channels=1`.

    Raises:
        InputError: unreadable, damaged, or a field that does not match.
    """
    card = read_card(path)
    for field, value in expected.items():
        if getattr(card, field) != value:
            raise InputError(f"the prior {path} has {field} {getattr(card, field)!r}, and {value!r} is needed here")
    net = _network(card, path)
    with safe_open(path, "pt") as f:
        tensors = {k: f.get_tensor(k).float() for k in f.keys()}  # noqa: SIM118 - safe_open is no mapping
    found = {k.removeprefix(_STATISTICS): tensors.pop(k) for k in list(tensors) if k.startswith(_STATISTICS)}
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    if shapes != {k: tuple(v.shape) for k, v in tensors.items()}:
        raise InputError(f"the weights in {path} do not fit the network its card describes")
    if not all(bool(v.isfinite().all()) for v in (*tensors.values(), *found.values())):
        raise InputError(f"the weights in {path} contain NaN or infinity; the file is damaged")
    net.load_state_dict(tensors)
    channels_last(net.to(device), card.network.get("dims", 2))
    return Prior(net, card, path, hashlib.sha256(path.read_bytes()).hexdigest(), found)


def _network(card: Card, path: Path) -> Preconditioned | ChainNetwork:
    """The network a card describes, with random weights."""
    try:
        if card.architecture == ChainNetwork.architecture:
            return ChainNetwork.from_settings(card.network, card.head)
        if card.architecture not in ARCHITECTURES:
            raise InputError(f"this version does not know the architecture {card.architecture!r}")
        process(card.process, **card.process_parameters)
        unet = ARCHITECTURES[card.architecture](**card.network)
    except (TypeError, KeyError, ValidationError, InputError) as error:
        raise InputError(f"the card of {path} does not describe a prior: {str(error).splitlines()[0]}") from error
    channels = unet.settings["in_channels"], unet.settings["out_channels"]
    heads = 2 if card.head == TWO_HEADS else 1
    if channels != (card.channels + card.condition_channels, heads * card.channels):
        raise InputError(
            f"the card of {path} says {card.channels} channel(s) and {card.condition_channels} of a condition; "
            f"its network takes {channels[0]} and returns {channels[1]}"
        )
    return Preconditioned(unet, card.sigma_data, card.sigma_range, card.head)


def describe(path: Path) -> dict[str, Any]:
    """Card and path as plain data, for `diffsuite priors`."""
    return {"path": str(path), **json.loads(read_card(path).model_dump_json())}
