"""Learned haze estimation on the grid: the restoration network, and the joint posterior with two priors.

`restore` is the residual family: with the hazy frame y as anchor and h the haze,

    x_t = y - h_t,    h_t = (1 - t) h + t eps,

so that the clean picture x_0 = y - h is reached from x_1 = y - eps; the network gives E[h | h_t, y, context]. Where it finds
no haze the picture stays as it is.

The joint methods draw tissue x and haze h from `p(x, h | y) ~ p(y | x, h) p(x) p(h)` on companded envelopes C,

    C(y) = C( C^-1(x) + gamma C^-1(h) ) + n        (Stevens et al. 2024, eq. 12).
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
from domains.ultrasound.physics import compand, decompress, expand_companded
from suite.errors import InputError
from suite.grid import time_grid
from suite.joint import JointPrior, Projection
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior import METHODS
from suite.posterior.base import PosteriorMethod
from suite.prior import Prior
from suite.process import flow_matching
from suite.solver import DDIM, sample

JOINT: dict[str, Callable[..., PosteriorMethod]] = {
    "pigdm": METHODS["pigdm"],
    "dps": METHODS["dps"],
    "projection": Projection,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "pigdm": {"start": 0.1, "iterations": 5},
    "dps": {"start": 0.1, "strength": 0.3},
    "projection": {"start": 0.1},
}
"""What the joint methods use here beside their own defaults; `start`: the time to which the first estimate is noised."""

JOINT_STEPS = {"pigdm": 10, "dps": 20, "projection": 20}

WIDEST = 2.0
"""Companded signals lie in 0..1; a state beyond this is cut off before it is expanded."""

Clock = Callable[[str], AbstractContextManager[Any]]


def restore(
    grey: Tensor, prior: Prior, *, window: int, steps: int, seed: int, identity: str, chunk: int, clock: Clock
) -> tuple[Tensor, int]:
    """Haze `(T, rows, columns)` of grey values 0..1, and the network evaluations it took.

    A single step gives E[h | y, context]: at t = 1 the state says nothing about h, and its mean, zero, stands for it. With more
    steps every frame starts from the same noise, which keeps the estimate steady over time.
    """
    denoiser = prior.denoiser(clock=lambda: clock("network"))
    seen = F.pixel_unshuffle(context(grey, window), BLOCK)
    start = torch.zeros_like(seen[:1, : BLOCK**2])
    if steps > 1:
        start = Noise.of(seed, [identity]).normal(start)
    times = time_grid(prior.process, steps)
    parts = []
    for i in range(0, len(grey), chunk):
        y = seen[i : i + chunk]
        x = prior.process.start(start.expand(len(y), *start.shape[1:]))
        parts.append(F.pixel_shuffle(sample(denoiser, DDIM(), times, x, y=y), BLOCK)[:, 0])
    return torch.cat(parts).float(), steps


def joint(
    grey: Tensor,
    guess: Tensor,
    tissue: Prior,
    haze: Prior,
    *,
    method: str,
    gamma: float,
    noise_std: float,
    dynamic_range_db: float,
    steps: int | None,
    options: dict[str, Any],
    seed: int,
    identity: str,
    chunk: int,
    clock: Clock,
) -> tuple[Tensor, int]:
    """Share of tissue in the envelope, `(T, rows, columns)` in 0..1, and the evaluations of each network.

    Args:
        grey, guess: the picture, and an estimate of it without haze to start from, grey values 0..1.
        gamma: strength of the haze in the sum.
        noise_std: standard deviation of what neither signal explains, on the companded scale.

    Raises:
        InputError: an option the method does not have.
    """
    process = flow_matching()
    parts = [prior.denoiser(process, clock=lambda: clock("network")) for prior in (tissue, haze)]
    scale = (tissue.card.sigma_data**2 + haze.card.sigma_data**2) / 2
    size = BLOCK**2
    product = JointPrior(parts, (size, size), data_std=scale**0.5)
    seen, clean = (decompress(values, dynamic_range_db)[:, None] for values in (grey, torch.minimum(guess, grey)))
    y, x0, h0 = (F.pixel_unshuffle(compand(values), BLOCK) for values in (seen, clean, seen - clean))

    def mixed(u: Tensor) -> Tensor:
        x, h = u.clamp(-WIDEST, WIDEST).split(size, 1)  # C^-1 grows like 256^|u|
        return compand(expand_companded(x) + gamma * expand_companded(h))

    shares = []
    for i in range(0, len(y), chunk):
        part = y[i : i + chunk]
        measurement = Measurement(mixed, part, noise_std, linear=False)
        noise = Noise.of(seed, [identity] * len(part))  # the same for every frame
        like = part.new_empty((len(part), 2 * size, *part.shape[2:]))
        solver = joint_method(
            method, {"init": torch.cat([x0[i : i + chunk], h0[i : i + chunk]], 1)} | SETTINGS[method] | options
        )
        found = solver.run(product, measurement, like, noise=noise, steps=steps or JOINT_STEPS[method])
        x, h = expand_companded(found.clamp(0, WIDEST)).split(size, 1)
        shares.append(F.pixel_shuffle(1 - gamma * h / (x + gamma * h).clamp_min(1e-6), BLOCK)[:, 0])
    return torch.cat(shares).clamp(0, 1), parts[0].evaluations // max(1, -(-len(y) // chunk))


def joint_method(name: str, options: dict[str, Any]) -> PosteriorMethod:
    """The method with these arguments.

    Raises:
        InputError: it does not have one of them.
    """
    try:
        return JOINT[name](**options)
    except TypeError as error:
        raise InputError(f"method {name}: {error}") from None
