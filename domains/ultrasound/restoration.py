"""The residual family: with the hazy frame y as anchor and h the haze,

    x_t = y - h_t,    h_t = (1 - t) h + t eps,

so that the clean picture x_0 = y - h is reached from x_1 = y - eps; the network gives E[h | h_t, y, context]. Where it finds no
haze the picture stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    second: Prior | None = None,
    window: int,
    steps: int,
    seed: int,
    identity: str,
    chunk: int,
    clock: Clock,
    regenerate: float | None = None,
) -> tuple[Tensor, int]:
    """Haze `(T, rows, columns)` of grey values 0..1, and the network evaluations it took.

    A single step is `predicted`. With more, every frame starts from the same noise, which keeps the estimate steady over time.

    Args:
        second: another network, whose single estimate is averaged with that of `prior`.
        regenerate: None, or the time to which `predicted` is noised; the other steps carry it back to 0 (predict, then
            regenerate; Lemercier et al. 2023, StoRM).
    """
    seen, process, networks = context(grey, window), prior.process, [prior] + ([] if second is None else [second])
    eps = torch.zeros_like(blocks(seen[:1, :1]))
    if steps > 1:
        eps = Noise.of(seed, [identity]).normal(eps)
    parts = []
    for i in range(0, len(grey), chunk):
        now = seen[i : i + chunk]
        if steps == 1:
            parts.append(predicted(networks, now, clock))
            continue
        if regenerate is None:
            times, x = time_grid(process, steps), process.start(eps.expand(len(now), *eps.shape[1:]))
        else:
            times = time_grid(process, steps - 1, start=regenerate)
            first = blocks(predicted([prior], now, clock)[:, None])
            x = process.marginal(first, times[:1].to(first.device).reshape(1, 1, 1, 1), eps)
        denoiser = prior.denoiser(clock=lambda: clock("network"))
        parts.append(pictures(sample(denoiser, DDIM(), times, x, y=blocks(now))))
    return torch.cat(parts).float(), len(networks) if steps == 1 else steps


def predicted(networks: Sequence[Prior], seen: Tensor, clock: Clock) -> Tensor:
    """`E[h | y]`, `(T, rows, columns)`, of frames with their context `(T, 3, rows, columns)`: one evaluation of each network.

    At t = 1 the state says nothing about h, and its mean, zero, stands for it. The mean over networks, and over a picture and its
    mirror image: where one is wrong the others mostly are not, or not in the same way.
    """
    both = blocks(torch.cat([seen, seen.flip(-1)]))
    start, total = torch.zeros_like(both[:, : BLOCK**2]), torch.zeros_like(seen[:, 0])
    for prior in networks:
        denoiser = prior.denoiser(clock=lambda: clock("network"))
        upright, mirrored = pictures(sample(denoiser, DDIM(), time_grid(prior.process, 1), start, y=both)).chunk(2)
        total += (upright.float() + mirrored.float().flip(-1)) / (2 * len(networks))
    return total


def blocks(shown: Tensor) -> Tensor:
    """`(T, C, rows, columns)`, blocks of pixels as channels."""
    return F.pixel_unshuffle(shown, BLOCK)


def pictures(signal: Tensor) -> Tensor:
    """`(T, rows, columns)` of a signal in blocks."""
    return F.pixel_shuffle(signal, BLOCK)[:, 0]
