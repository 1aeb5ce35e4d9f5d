"""Training a policy on demonstrations: episodes -> windows -> network.

Every step draws its examples, times and noise from a generator made of the seed and the step's number: a resumed run equals
an undisturbed one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from domains.robot.containers import Array, Demonstrations, Episode
from domains.robot.data import with_commands
from domains.robot.network import ActionNetwork
from domains.robot.normalizer import Normalizer
from domains.robot.origin import Origin
from domains.robot.samplers import rising_times
from domains.robot.settings import RobotTrainingConfig, SymmetryConfig
from domains.robot.vision import shaken
from domains.robot.windows import Windows, windows
from suite.checkpoint import descend, load_checkpoint, save_checkpoint
from suite.errors import InputError
from suite.noise import generator
from suite.process import process
from suite.training import TrainingConfig, draw_times


def split(episodes: Sequence[Episode], every: int) -> tuple[list[int], list[int]]:
    """Numbers of the episodes to train on, and of those held out (the last of each `every`; none for a single episode)."""
    held_out = [i for i in range(len(episodes)) if every > 1 and i % every == every - 1]
    return [i for i in range(len(episodes)) if i not in set(held_out)], held_out


def images(episodes: Sequence[Episode], symmetry: SymmetryConfig) -> list[Episode]:
    """The episodes as the symmetry maps them.

    Raises:
        InputError: a map whose shape does not fit the data.
    """

    def mapped(values: Array, rows: list[list[float]], name: str) -> Array:
        width = values.shape[1]
        if [len(row) for row in rows] != [width + 1] * width:
            raise InputError(f"data.symmetry.{name} needs {width} rows of {width + 1} numbers (matrix and offset)")
        matrix = np.array(rows, dtype=np.float64)
        return np.asarray(values @ matrix[:, :-1].T + matrix[:, -1], dtype=np.float32)

    return [
        Episode(
            mapped(e.observation, symmetry.observation, "observation"),
            mapped(e.action, symmetry.action, "action"),
        )
        for e in episodes
    ]


class PolicyTrainer:
    """Trains an action network with AdamW and an exponential average; the rate falls along a cosine.

    With a time budget the rate follows whichever of steps and minutes is further on.
    """

    def __init__(self, config: RobotTrainingConfig, data: Demonstrations, output: Path, device: torch.device) -> None:
        self.config, self.data, self.output, self.device = config, data, output, device
        self.fps = config.data.fps or data.fps or 10.0
        _check(config, data)
        if config.data.commands:
            data = self.data = with_commands(data, config.data.position)
        self.train_numbers, self.held_out = split(data.episodes, config.data.held_out)
        shown = [data.episodes[i] for i in self.train_numbers]
        kept = [data.episodes[i] for i in self.held_out] or shown
        if config.data.symmetry is not None:
            shown = shown + images(shown, config.data.symmetry)
        steps, horizon = config.observation_steps, config.horizon
        self.normalizer = Normalizer.fit(
            shown, self.fps, config.data.angles, config.data.normalisation, config.data.relative
        )
        self.train = windows(shown, self.normalizer, steps, horizon)
        origin = None
        if config.linear:
            origin, self.normalizer = fitted_origin(self.train, self.normalizer)
            self.train = windows(shown, self.normalizer, steps, horizon)
        self.validation = windows(kept, self.normalizer, steps, horizon).thinned(2000)
        chunk = self.train.chunk if origin is None else self.train.chunk - origin(self.train.condition)
        self.sigma_data = max(0.05, round(float(chunk.square().mean().sqrt()), 4))
        self.settings = {
            "action_dim": data.action_dim,
            "horizon": horizon,
            "condition_dim": self.train.condition.shape[1] + vision_features(config),
            **config.network.settings(),
        }
        if config.stream.share:
            self.settings["levels"] = horizon
        torch.manual_seed(config.seed)  # initial weights; nothing else draws from the global generator
        span = (config.noise.low, config.noise.high)
        self.process = process(config.process)
        self.net = ActionNetwork(
            config.network.kind,
            config.head,
            self.process,
            self.sigma_data,
            span,
            self.settings,
            config.vision.settings(),
        ).to(device)
        if origin is not None:  # at the start the linear prediction itself
            self.net.origin = origin.to(device)
            for parameter in self.net.network.tail.parameters():  # type: ignore[union-attr]
                nn.init.zeros_(parameter)
        self.average = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.schedule = TrainingConfig(noise=config.noise)
        # Finding the time of a noise level takes longer than a small network: the steps draw from a table of times.
        ends = -torch.tensor([config.noise.low, config.noise.high], dtype=torch.float64).log()
        self.ends = self.process.time_of_log_snr(ends).tolist()
        self.table = draw_times(self.schedule, self.process, 1 << 16, generator(config.seed, "times")).float()
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []

    @property
    def checkpoint(self) -> Path:
        return self.output.with_suffix(".checkpoint")

    def times(self, size: int, rng: torch.Generator) -> Tensor:
        """Noise levels of a batch: `(size,)`, or `(size, H)` for a network that knows one per action."""
        t = self.table[torch.randint(len(self.table), (size,), generator=rng)]
        stream = self.config.stream
        if not stream.share:
            return t
        progress = torch.rand(size, generator=rng)
        rising = rising_times(self.config.horizon, stream.stride, progress).float().clamp(*self.ends)
        return torch.where(torch.rand(size, 1, generator=rng) < stream.share, rising, t[:, None])

    def train_step(self, progress: float) -> Tensor:
        """One step at this share of the training; returns the loss."""
        config = self.config
        rng = generator(config.seed, f"step {self.step}")
        chosen = torch.randint(len(self.train), (config.batch,), generator=rng)
        x0, seen = (v[chosen].to(self.device) for v in (self.train.chunk, self.train.condition))
        pictures = None if self.train.pictures is None else self.train.pictures[chosen].to(self.device)
        if pictures is not None:
            pictures = shaken(pictures, config.vision.shift, rng)
        t = self.times(config.batch, rng).to(self.device)
        eps = torch.randn(x0.shape, generator=rng).to(self.device)
        rate = config.learning_rate * min((self.step + 1) / max(1, config.warmup), 1.0)
        self.optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=config.mixed_precision):
            loss = self.net.loss(x0, self.net.condition(seen, pictures), t, eps).mean()
        descend(loss, self.net, self.average, self.optimizer, config.ema, self.step)
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def validate(self) -> float:
        """Loss of the averaged network on the held-out episodes, at fixed times and noise, one level per chunk."""
        rng = generator(0, "validation")
        t = draw_times(self.schedule, self.process, len(self.validation), rng)
        eps = torch.randn(self.validation.chunk.shape, generator=rng)
        x0, t, eps = (v.to(self.device) for v in (self.validation.chunk, t, eps))
        return float(self.average.loss(x0, self.conditions(self.average), t, eps).mean())

    @torch.no_grad()
    def conditions(self, net: ActionNetwork) -> Tensor:
        """What this network is conditioned on in the held-out examples."""
        held = self.validation
        parts = []
        for i in range(0, len(held), 256):
            pictures = None if held.pictures is None else held.pictures[i : i + 256].to(self.device)
            parts.append(net.condition(held.condition[i : i + 256].to(self.device), pictures))
        return torch.cat(parts)

    def run(self, report: Callable[[dict[str, Any]], None] = lambda _: None, minutes: float | None = None) -> None:
        """Train for the configured iterations, or until `minutes` have passed, those before a resume counted too.

        Raises:
            InputError: the loss is not finite; the last checkpoint is untouched.
        """
        began = time.monotonic() - self.seconds
        losses: list[Tensor] = []
        every = max(1, min(1000, self.config.iterations // 10))
        while True:
            self.seconds = time.monotonic() - began
            spent = 0.0 if minutes is None else self.seconds / (60 * minutes)
            progress = min(1.0, max(self.step / self.config.iterations, spent))
            if progress < 1:
                losses.append(self.train_step(progress))
            if progress >= 1 or self.step % every == 0:
                self._record(losses, report)
                losses = []
            if progress >= 1:
                return

    def _record(self, losses: list[Tensor], report: Callable[[dict[str, Any]], None]) -> None:
        loss = float(torch.stack(losses).mean()) if losses else None
        if loss is not None and not math.isfinite(loss):
            raise InputError(f"the training loss is {loss} by step {self.step}; lower learning_rate")
        row = {"step": self.step, "seconds": round(self.seconds, 1), "loss": loss, "validation": self.validate()}
        self.history.append(row)
        self.save_checkpoint()
        report(row)

    def save_checkpoint(self) -> None:
        state = {"step": self.step, "seconds": self.seconds, "history": self.history}
        state["config"] = self.config.model_dump(mode="json")
        save_checkpoint(self.checkpoint, self.net, self.average, self.optimizer, state)

    def resume(self) -> None:
        """Continue from the checkpoint beside the output; see `load_checkpoint`. The iterations may differ."""

        def same(config: dict[str, Any]) -> bool:
            return _shaping(config) == _shaping(self.config.model_dump(mode="json"))

        state = load_checkpoint(self.checkpoint, self.net, self.average, self.optimizer, same)
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]


def _shaping(config: dict[str, Any]) -> dict[str, Any]:
    """What decides the course of training; words on the card and the number of anchors do not."""
    free = ("iterations", "anchors", "execute", "name", "description", "licence", "limits")
    return {key: value for key, value in config.items() if key not in free}


def vision_features(config: RobotTrainingConfig) -> int:
    """How many numbers the pictures become."""
    return 2 * config.vision.points * len(config.vision.cameras)


def fitted_origin(examples: Windows, normalizer: Normalizer) -> tuple[Origin, Normalizer]:
    """The linear prediction of the chunks, and statistics by which what it leaves has the size 1 in every dimension."""
    origin = Origin.fit(examples.condition, examples.chunk)
    left = (examples.chunk - origin(examples.condition)).square().mean((0, 2)).sqrt()
    size = torch.where(normalizer.action_scale > 0, left.clamp_min(1e-4), 1.0)
    return origin.scaled(size), replace(normalizer, action_scale=normalizer.action_scale * size)


def _check(config: RobotTrainingConfig, data: Demonstrations) -> None:
    """Refuse settings that do not fit each other or the data."""
    if config.execute > config.horizon:
        raise InputError(f"execute is {config.execute} and the horizon only {config.horizon}; it must not be longer")
    if config.stream.share and config.horizon % config.stream.stride:
        raise InputError(f"stream.stride is {config.stream.stride}; it must divide the horizon {config.horizon}")
    if config.stream.share and config.network.kind != "mlp":
        raise InputError(f"stream.share needs network.kind mlp; {config.network.kind} knows one noise level per chunk")
    if config.vision.cameras and config.data.symmetry is not None:
        raise InputError("data.symmetry maps vectors, and vision.cameras gives pictures; leave one of them out")
    if config.vision.cameras and any(episode.pictures is None for episode in data.episodes):
        raise InputError(
            f"{data.name}: vision.cameras is {config.vision.cameras}, and the data were read without pictures"
        )
    position = config.data.position
    good = position is None or (
        len(position) == data.action_dim and all(0 <= i < data.observation_dim for i in position)
    )
    if not good:
        raise InputError(
            f"data.position is {position}; it needs one observation dimension (0 to {data.observation_dim - 1}) for each "
            f"of the {data.action_dim} action dimensions"
        )
