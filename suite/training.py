"""One trainer for every domain, process and head.

The network learns `F` of EDM preconditioning (suite/network.py): the regression target `(x0 - c_skip z) / c_out` has
unit variance at every noise level, so the loss needs no weighting (Karras et al. 2022, section 5). With another head it
learns that head's target (suite/denoiser.py), unweighted too, as the authors of these heads do.
Every step draws its data, times and noise from a generator made of the seed and the step's number: a resumed run equals
an undisturbed one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from suite.checkpoint import descend, load_checkpoint, save_checkpoint
from suite.denoiser import target
from suite.errors import InputError
from suite.families import family
from suite.masking import MaskUNet
from suite.network import TWO_HEADS, Head, Preconditioned, UNet, channels_last
from suite.noise import generator
from suite.process import Process, process


class NetworkConfig(BaseModel):
    """The backbone; `masking` makes it a `MaskUNet`, and `places` is one of its arguments."""

    model_config = ConfigDict(extra="forbid")
    masking: bool = False
    places: int = Field(default=0, ge=0)
    channels: list[int] = [48, 96, 192, 256]
    blocks: int = 2
    dims: Literal[1, 2, 3] = 2
    features: int = 256


class NoiseLevels(BaseModel):
    """Training noise levels: `log(sigma/alpha)` normal with this mean and deviation; `t` uniform when mean is null.

    `pinned` is the share of examples at t = 1, where a bridge is its degraded signal: the network as a predictor.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    mean: float | None = -2.3
    std: float = Field(default=1.6, ge=0)
    low: float = Field(default=2e-3, gt=0)
    high: float = Field(default=20.0, gt=0)
    pinned: float = Field(default=0.0, ge=0, le=1)


class TrainingConfig(BaseModel):
    """What is trained, and how. One file of this kind, and the data, make a prior.

    `family` stands for process, head, loss and noise levels as the authors of a restoration diffusion have them
    (suite/families.py); what is set beside it has precedence. `licence` and `limits` go into the card: whose data the weights are
    made of, and what they must not be used for.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    family: str | None = None
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    process: str = "edm"
    process_parameters: dict[str, float] = Field(default_factory=dict)
    head: Head = "edm"
    loss: Literal["l2", "l1"] = "l2"
    sigma_data: float = Field(default=0.5, gt=0)
    noise: NoiseLevels = Field(default_factory=NoiseLevels)
    patch: int = Field(default=64, ge=1)
    batch: int = Field(default=16, ge=1)
    steps: int = Field(default=20000, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    warmup: int = Field(default=200, ge=0)
    cooldown: float = Field(default=0.3, ge=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    immiscible: bool = False
    mixed_precision: bool = True
    seed: int = 0
    validate_every: int = Field(default=1000, ge=1)
    validation_levels: list[PositiveFloat] = [0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0]
    licence: str = "weights: those of the training data"
    limits: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, data: Any) -> Any:
        named = data.get("family") if isinstance(data, dict) else None
        return data if named is None else {**family(named).training(), **data}


class Source(Protocol):
    """Training data of a domain.

    A source may also have `penalty(estimate, x0, y)`, `(B,)`, which is added to the loss.
    """

    channels: int
    condition_channels: int

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """`size` clean examples `(B, C, *patch)` in network units, and their degraded partners `y` (or None)."""

    def validation(self, patch: int) -> tuple[Tensor, Tensor | None]:
        """Fixed examples of subjects that `batch` never shows."""


def draw_times(config: TrainingConfig, proc: Process, size: int, rng: torch.Generator) -> Tensor:
    """Times `(size,)` in float64."""
    levels = config.noise
    if levels.mean is None:
        times = torch.rand(size, generator=rng, dtype=torch.float64)
        pinned = levels.pinned > 0 and torch.rand(size, generator=rng) < levels.pinned
        return torch.where(pinned, 1.0, times) if isinstance(pinned, Tensor) else times
    log_ratio = levels.mean + levels.std * torch.randn(size, generator=rng, dtype=torch.float64)
    return proc.time_of_log_snr(-log_ratio.clamp(math.log(levels.low), math.log(levels.high)))


def assign_noise(x0: Tensor, eps: Tensor) -> Tensor:
    """Immiscible diffusion (Li et al. 2024): permute the batch's noises so that each goes to a near image."""
    cost = torch.cdist(x0.flatten(1), eps.flatten(1))
    return eps[torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=eps.device)]


Penalty = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def residual_loss(
    net: Preconditioned,
    proc: Process,
    x0: Tensor,
    y: Tensor | None,
    t: Tensor,
    eps: Tensor,
    penalty: Penalty | None = None,
    norm: Literal["l2", "l1"] = "l2",
) -> Tensor:
    """`|F - (x0 - c_skip z)/c_out|^2`, or the same of another head's target; one value per batch item.

    `z` needs no `y`: it is the state less its anchor.
    """
    time_ = t.reshape(-1, *(1,) * (x0.ndim - 1))
    alpha, sigma = proc.alpha(time_).to(x0.dtype), proc.sigma(time_).to(x0.dtype)
    z = alpha * x0 + sigma * eps
    o = net.output(z, alpha, sigma, y)
    if net.head == "edm":
        error = (net.read(o, z, alpha, sigma, y) - x0) / net.coefficients(alpha, sigma)[1]
    else:  # RDDM's two heads are learned side by side
        own = None if y is None else y[:, : x0.shape[1]]
        error = o - torch.cat([target(head, proc, x0, eps, time_, own) for head in net.head.split("+")], dim=1)
    loss: Tensor = (error.abs() if norm == "l1" else error.square()).flatten(1).mean(1)
    if penalty is None:
        return loss
    return loss + penalty(net.read(o, z, alpha, sigma, y)[:, : x0.shape[1]], x0, y)


class Trainer:
    """Trains a preconditioned U-Net on a `Source`, with EMA, mixed precision, checkpoints and per-level validation."""

    def __init__(self, config: TrainingConfig, source: Source, output: Path, device: torch.device) -> None:
        self.config, self.source, self.output, self.device = config, source, output, device
        self.process = process(config.process, **config.process_parameters)
        torch.manual_seed(config.seed)  # initial weights; nothing else draws from the global generator
        settings = config.network.model_dump(exclude={"masking", "places"})
        self.penalty: Penalty | None = getattr(source, "penalty", None)
        channels = source.channels + source.condition_channels, source.channels * (1 + (config.head == TWO_HEADS))
        masking = config.network.masking
        if config.head in ("residual", "resnoise", TWO_HEADS) and source.condition_channels < source.channels:
            raise InputError(f"the {config.head} head is trained on pairs, and these data have no degraded signals")
        if masking and config.head != "edm":
            raise InputError(f"a mask network has no {config.head} head; use edm")
        backbone = (
            MaskUNet(*channels, config.sigma_data, config.network.places, **settings)
            if masking
            else UNet(*channels, **settings)
        )
        span = (config.noise.low, config.noise.high)
        self.net = Preconditioned(backbone, config.sigma_data, span, config.head).to(device)
        channels_last(self.net, config.network.dims)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []

    @property
    def checkpoint(self) -> Path:
        return self.output.with_suffix(".checkpoint")

    def learning_rate(self) -> float:
        """Linear warm-up, constant, linear cool-down over the last share of the steps."""
        config = self.config
        left = (config.steps - self.step) / max(1.0, config.cooldown * config.steps)
        return config.learning_rate * min(1.0, (self.step + 1) / max(1, config.warmup), left)

    def train_step(self) -> float:
        """One optimiser step; returns the loss.

        Raises:
            InputError: the loss is not finite; the last checkpoint is untouched.
        """
        config = self.config
        rng = generator(config.seed, f"step {self.step}")
        x0, y = self.source.batch(config.batch, config.patch, rng)
        t = draw_times(config, self.process, len(x0), rng)
        eps = torch.randn(x0.shape, generator=rng)
        eps = assign_noise(x0, eps) if config.immiscible else eps
        x0, t, eps = x0.to(self.device), t.to(self.device), eps.to(self.device)
        y = None if y is None else y.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=config.mixed_precision):
            loss = residual_loss(self.net, self.process, x0, y, t, eps, self.penalty, config.loss).mean()
        descend(loss, self.net, self.average, self.optimizer, config.ema, self.step)
        self.step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"the training loss is {value} at step {self.step}; look for NaN in the data or lower learning_rate"
            )
        return value

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Root-mean-square denoising error of the averaged network at each noise level, in network units.

        Where a bridge is trained as a predictor too, `y` is its error at t = 1.
        """
        x0, y = self.source.validation(self.config.patch)
        levels = torch.tensor(self.config.validation_levels, dtype=torch.float64)
        names = [f"{level:g}" for level in self.config.validation_levels]
        times = dict(zip(names, self.process.time_of_log_snr(-levels.log()), strict=True))
        if self.config.noise.pinned:
            times["y"] = torch.ones((), dtype=torch.float64)
        out = {}
        for level, now in times.items():
            errors = []
            for i in range(0, len(x0), 32):
                x, cond = x0[i : i + 32].to(self.device), None if y is None else y[i : i + 32].to(self.device)
                eps = torch.randn(x.shape, generator=generator(0, f"validation {level} {i}")).to(self.device)
                t = now.reshape((1,) * x.ndim)
                alpha, sigma = (f(t).float().to(self.device) for f in (self.process.alpha, self.process.sigma))
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.mixed_precision):
                    mean = self.average(alpha * x + sigma * eps, alpha, sigma, cond)[:, : x.shape[1]]
                errors.append((mean - x).square().flatten(1).mean(1))
            out[level] = float(torch.cat(errors).mean().sqrt())
        return out

    def run(self, report: Callable[[dict[str, Any]], None] = lambda _: None, minutes: float | None = None) -> None:
        """Train to the configured number of steps, or until `minutes` have passed, those before a resume counted too.

        A run cut short keeps a checkpoint.
        """
        began = time.monotonic() - self.seconds
        losses: list[float] = []
        while self.step < self.config.steps:
            losses.append(self.train_step())
            self.seconds = time.monotonic() - began
            over = minutes is not None and self.seconds > 60 * minutes
            if self.step % self.config.validate_every == 0 or self.step == self.config.steps or over:
                row: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1)}
                row |= {"loss": sum(losses) / len(losses), "validation_rmse": self.validate()}
                self.history.append(row)
                losses = []
                self.save_checkpoint()
                report(row)
            if over:
                break

    def card_fields(self, command: str, **training: Any) -> dict[str, Any]:
        """What a card says of any training: the network, its process and range, how it was trained, licence and limits.

        Args:
            command: the command that trains it.
            training: further facts.
        """
        config = self.config
        return {
            "network": self.net.network.settings,
            "process": config.process,
            "process_parameters": config.process_parameters,
            "head": config.head,
            "sigma_data": config.sigma_data,
            "sigma_range": (config.noise.low, config.noise.high),
            "licence": config.licence,
            "limits": config.limits,
            "training": {
                "command": command,
                "steps": self.step,
                "seconds": round(self.seconds),
                "patch": config.patch,
                "batch": config.batch,
                "seed": config.seed,
                **training,
            },
        }

    def save_checkpoint(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "config": self.config.model_dump(mode="json"),
        }
        save_checkpoint(self.checkpoint, self.net, self.average, self.optimizer, state)

    def resume(self) -> None:
        """Continue from the checkpoint beside the output; see `load_checkpoint`. The step count may differ."""
        state = load_checkpoint(self.checkpoint, self.net, self.average, self.optimizer, self._made)
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def _made(self, config: dict[str, Any]) -> bool:
        """Whether this configuration makes the same training, but for its length and what the card says of it."""
        try:  # a setting newer than the checkpoint had its default then
            made_by = type(self.config).model_validate(config)
        except ValidationError:
            return False
        aside: dict[str, Any] = {"steps": 0, "licence": "", "limits": []}
        return made_by.model_copy(update=aside) == self.config.model_copy(update=aside)
