"""Training the joint prior: scenes -> windows of neighbouring bands and pixels -> a prior of three dimensions, with card.

The prior denoises a window `(bands, rows, columns)` of a scene whose bands are standardised to mean 0 and deviation 1: space and
spectrum at once, as FINCH's HSI-Diffusion does. It needs no subspace and knows none.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from domains.hyperspectral.containers import Cube
from domains.hyperspectral.statistics import regression_noise
from domains.hyperspectral.training import DataConfig, HyperspectralTrainingConfig, scenes
from suite.errors import InputError
from suite.prior import Card
from suite.training import Trainer

UNIT = "standardised band"
"""Network units: every band of a scene with mean 0 and standard deviation 1."""

CLEAN = 14.0
"""Bands less than so many times above their noise are not learnt from."""


def standardised(cube: Cube) -> NDArray[np.float32]:
    """`(bands, rows, columns)`: the clean bands of a scene with mean 0 and deviation 1."""
    rows, columns, _ = cube.shape
    values = cube.values().reshape(rows * columns, -1)
    values = values[:, np.isfinite(values).mean(0) > 0.5]
    values = np.where(np.isfinite(values), values, np.nanmean(values, axis=0))
    values = values - values.mean(0)
    values = values[:, values.std(0) > 0]
    values = values[:, values.std(0) > CLEAN * regression_noise(values)]
    out: NDArray[np.float32] = (values / values.std(0)).T.reshape(-1, rows, columns)
    return np.ascontiguousarray(out)


class BandWindows:
    """Windows `(1, window, patch, patch)` of standardised scenes, every scene alike often.

    Flipped, turned and rescaled in space, reversed along the spectrum, with every band or every other one, and of either sign.
    """

    channels = 1
    condition_channels = 0

    def __init__(self, train: dict[str, Tensor], held_out: dict[str, Tensor], window: int, zoom: float) -> None:
        self.train, self.held_out, self.window, self.zoom = train, held_out, window, zoom

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, None]:
        chosen = torch.randint(len(self.train), (size,), generator=rng).tolist()
        stacks = list(self.train.values())
        return torch.stack([self._cut(stacks[i], patch, self.zoom, rng) for i in chosen]), None

    def validation(self, patch: int, count: int = 16) -> tuple[Tensor, None]:
        rng = torch.Generator().manual_seed(0)
        stacks = list(self.held_out.values())
        return torch.stack([self._cut(stacks[i % len(stacks)], patch, 1.0, rng) for i in range(count)]), None

    def _cut(self, stack: Tensor, patch: int, zoom: float, rng: torch.Generator) -> Tensor:
        stride = 2 if len(stack) >= 2 * self.window and float(torch.rand((), generator=rng)) < 0.3 else 1
        first = int(torch.randint(len(stack) - stride * (self.window - 1), (), generator=rng))
        cut = max(1, min(round(patch * zoom ** (2 * float(torch.rand((), generator=rng)) - 1)), *stack.shape[1:]))
        i, j = (int(torch.randint(n - cut + 1, (), generator=rng)) for n in stack.shape[1:])
        x = stack[first::stride, i : i + cut, j : j + cut][: self.window]
        if cut != patch:
            x = F.interpolate(x[None], (patch, patch), mode="bicubic", antialias=True, align_corners=False)[0]
        turns, sign, turned = (int(torch.randint(n, (), generator=rng)) for n in (8, 2, 2))
        x = torch.rot90(x, turns % 4, (1, 2))
        x = x.flip(1) if turns >= 4 else x
        x = x.flip(0) if turned else x
        return (1 - 2 * sign) * x[None]


def band_windows(paths: Sequence[Path], config: DataConfig) -> tuple[BandWindows, list[str], list[str]]:
    """Windows of the training scenes, and the names on each side of the split.

    Raises:
        InputError: a side of the split is empty.
    """
    train: dict[str, Tensor] = {}
    held_out: dict[str, Tensor] = {}
    for name, cube in scenes(paths, config).items():
        stack = torch.from_numpy(standardised(cube))
        if len(stack) >= config.window:
            side = held_out if any(fnmatch(name, pattern) for pattern in config.validation) else train
            side[name] = stack
    if not train or not held_out:
        raise InputError(
            f"the split by scene leaves {len(train)} of at least {config.window} clean bands for training and "
            f"{len(held_out)} for validation; name at least one scene on each side with data.validation"
        )
    return BandWindows(train, held_out, config.window, config.zoom), list(train), list(held_out)


def joint_card(
    config: HyperspectralTrainingConfig, trainer: Trainer, train: Sequence[str], held_out: Sequence[str]
) -> Card:
    """The card of a finished training run."""
    last = trainer.history[-1]
    return Card(
        name=trainer.output.stem,
        domain="hyperspectral",
        description=f"Windows of {config.data.window} neighbouring bands of a scene, each of mean 0 and deviation 1; any size.",
        unit=UNIT,
        scale=1.0,
        offset=0.0,
        value_range=(-20.0, 20.0),
        channels=1,
        data=list(train),
        validation_data=list(held_out),
        **trainer.card_fields(
            "diffsuite hyperspectral train --data DIR -o PRIOR.safetensors --config configs/hyperspectral/train-finch.yaml",
            window=config.data.window,
        ),
        validation={
            "what": "RMS denoising error on windows of the held-out scenes, by noise level",
            "rmse": {level: round(error, 5) for level, error in last["validation_rmse"].items()},
        },
    )
