"""Training the network: every step draws a lead, a target and a number of seeds."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.weather.denoiser import SIGMA_MIN, condition, corrected, process_for, scalars_of
from domains.weather.hierarchy import Predictive
from domains.weather.model import lead_scalar
from domains.weather.network import MOST_SEEDS, FieldNet
from domains.weather.preparation import FitConfig
from domains.weather.training_set import Prepared, TrainingSet
from suite.checkpoint import descend
from suite.errors import InputError
from suite.noise import generator
from suite.training import Trainer


def default_widths(shape: tuple[int, int]) -> list[int]:
    """One level on rings and stations; on grids a level more for every doubling, to three."""
    if min(shape) == 1:
        return [64]
    return [32, 64] if min(shape) < 24 else [32, 64, 96]


class SeedTrainer(Trainer):
    """Trains the correction network: every step draws a lead, a target and a number of seeds for its whole batch."""

    def __init__(
        self, config: FitConfig, data: Prepared, output: Path, device: torch.device, grid: dict[str, Any]
    ) -> None:
        self.config, self.data, self.output, self.device = config, data, output, device  # type: ignore[assignment]
        torch.manual_seed(config.seed % 2**32)  # initial weights; nothing else draws from the global generator
        channels, height, width = data.train.shape
        widths = config.widths or default_widths((height, width))
        network = FieldNet(
            channels, data.static.shape[1], (height, width), **grid,
            widths=widths, blocks=config.blocks or (4 if len(widths) == 1 else 2), features=config.features,
        )  # fmt: skip
        self.net = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[assignment, call-overload]
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.laws: dict[tuple[int, str, int], Predictive] = {}
        self.step, self.seconds, self.history = 0, 0.0, []
        self.minutes: float | None = None

    def learning_rate(self) -> float:
        """Linear warm-up, constant, linear cool-down over the last share of the steps or of the time."""
        config = self.settings
        done = self.step / config.steps
        if self.minutes is not None:
            done = max(done, self.seconds / (60 * self.minutes))
        left = (1 - done) / max(config.cooldown, 1e-9)
        return config.learning_rate * max(0.0, min(1.0, (self.step + 1) / max(1, config.warmup), left))

    @property
    def settings(self) -> FitConfig:
        return self.config  # type: ignore[return-value]

    def law(self, step: int, kind: str, seeds: int) -> Predictive:
        key = (step, kind, seeds)
        if key not in self.laws:
            with torch.autocast(self.device.type, enabled=False):
                law = self.data.linear[step, kind].predictive(seeds)
            self.laws[key] = law.to(self.device)
        return self.laws[key]

    def loss(
        self, net: FieldNet, data: TrainingSet, which: tuple[int, str, int], rows: Tensor, rng: torch.Generator
    ) -> Tensor:
        """`|F - (r - D_G)/scale|^2` for random seeds and targets of dates `rows`, mean."""
        step, kind, seeds = which
        law = self.law(*which)
        x, y = (part.to(self.device) for part in data.draw(step, kind, seeds, rows, rng))
        scalars = scalars_of(seeds, kind == "truth", lead_scalar(self.data.leads_hours, step), data.season[rows])
        mask, static = self.data.mask.to(self.device), self.data.static.to(self.device)
        given = condition(net, law, x, scalars.to(self.device), static, mask)
        residual = (y - given.mean) * mask
        sigma = draw_sigma(law, len(rows), self.settings.noise_std, rng).to(self.device)
        eps = torch.randn(residual.shape, generator=rng).to(self.device)
        estimate, scale = corrected(net, residual + sigma[:, None, None, None] * eps, sigma, given)
        return (((estimate - residual) / scale).square() * mask).sum() / (mask.sum() * len(rows))

    def choose(self, rng: torch.Generator) -> tuple[int, str, int]:
        """A lead, a target and a number of seeds."""
        train, config = self.data.train, self.settings
        step = int(torch.randint(train.steps, (1,), generator=rng))
        truth = train.truth is not None and float(torch.rand(1, generator=rng)) < config.truth_share
        kind = "truth" if truth or train.most_seeds("member") < 0 else "member"
        weights = torch.tensor(config.seeds[: self.data.most_seeds(step, kind) + 1])
        return step, kind, int(torch.multinomial(weights, 1, generator=rng))

    def train_step(self) -> float:
        """One optimiser step; returns the loss.

        Raises:
            InputError: the loss is not finite.
        """
        config, data = self.settings, self.data.train
        rng = generator(config.seed, f"step {self.step}")
        which = self.choose(rng)
        rows = torch.randint(data.dates, (config.batch,), generator=rng)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=config.mixed_precision):
            loss = self.loss(self.net, data, which, rows, rng)  # type: ignore[arg-type]
        descend(loss, self.net, self.average, self.optimizer, config.ema, self.step)
        self.step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(f"the training loss is {value} at step {self.step}; lower learning_rate")
        return value

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss of the averaged network by number of seeds, on the development dates (else the training dates)."""
        data = self.data.development or self.data.train
        kind = data.kinds[-1]
        out = {}
        for seeds in sorted({min(k, data.most_seeds(kind)) for k in (0, 2, MOST_SEEDS)}):
            losses = []
            for step in range(min(data.steps, 3)):
                which = (step, kind, min(seeds, self.data.most_seeds(step, kind)))
                rng = generator(1, f"validation {step} {seeds}")
                rows = torch.arange(min(4 * data.dates, 512)) % data.dates
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.mixed_precision):
                    losses.append(float(self.loss(self.average, data, which, rows, rng)))  # type: ignore[arg-type]
            out[str(seeds)] = round(sum(losses) / len(losses), 5)
        return out


def draw_sigma(law: Predictive, size: int, std: float, rng: torch.Generator) -> Tensor:
    """Noise levels `(size,)`: log-normal about half the geometric mean of the point's and the largest EOF's deviation."""
    high = float(process_for(law).sigma(torch.ones(())))
    largest = float(law.values.max()) ** 0.5
    centre = 0.5 * (math.log(0.5 * law.variance**0.5) + math.log(0.5 * largest))
    width = std + 0.25 * max(0.0, math.log(largest) - 0.5 * math.log(law.variance))
    return (centre + width * torch.randn(size, generator=rng)).clamp(math.log(SIGMA_MIN), math.log(high)).exp()
