"""The residual family: with the hazy frame y as anchor and h the haze,

    x_t = y - h_t,    h_t = (1 - t) h + t eps,

so that the clean picture x_0 = y - h is reached from x_1 = y - eps; the network gives E[h | h_t, y, context]. Where it finds no
haze the picture stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.ultrasound.context import context
from domains.ultrasound.grid import BLOCK
from suite.grid import time_grid
from suite.noise import Noise
from suite.prior import Prior
from suite.solver import DDIM, sample

Clock = Callable[[str], AbstractContextManager[Any]]

REGENERATE = 0.3
"""Time to which a prediction is noised before it is carried back."""


def restore(
    grey: Tensor,
    prior: Prior,
    *,
    window: int,
    steps: int,
    seed: int,
    identity: str,
    chunk: int,
    clock: Clock,
    regenerate: float | None = None,
) -> tuple[Tensor, int]:
    """Haze `(T, rows, columns)` of grey values 0..1, and the network evaluations it took.

    A single step gives E[h | y, context]: at t = 1 the state says nothing about h, and its mean, zero, stands for it. With more
    steps every frame starts from the same noise, which keeps the estimate steady over time.

    Args:
        regenerate: None, or the time to which that single estimate is noised; the other steps carry it back to 0 (predict, then
            regenerate; Lemercier et al. 2023, StoRM).
    """
    denoiser = prior.denoiser(clock=lambda: clock("network"))
    seen = F.pixel_unshuffle(context(grey, window), BLOCK)
    eps = torch.zeros_like(seen[:1, : BLOCK**2])
    if steps > 1:
        eps = Noise.of(seed, [identity]).normal(eps)
    parts = []
    for i in range(0, len(grey), chunk):
        y = seen[i : i + chunk]
        if regenerate is None or steps == 1:
            times, x = time_grid(prior.process, steps), prior.process.start(eps.expand(len(y), *eps.shape[1:]))
        else:
            times = time_grid(prior.process, steps - 1, start=regenerate)
            x = prior.process.marginal(predicted(prior, y, clock), times[:1].reshape(1, 1, 1, 1), eps)
        parts.append(F.pixel_shuffle(sample(denoiser, DDIM(), times, x, y=y), BLOCK)[:, 0])
    return torch.cat(parts).float(), steps


def predicted(prior: Prior, y: Tensor, clock: Clock) -> Tensor:
    """`E[h | y]` in blocks, for conditions in blocks: one evaluation."""
    denoiser = prior.denoiser(clock=lambda: clock("network"))
    start = torch.zeros_like(y[:, : BLOCK**2])
    return sample(denoiser, DDIM(), time_grid(prior.process, 1), start, y=y).float()
