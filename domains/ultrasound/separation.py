"""Two priors and one picture: tissue x and haze h from `p(x, h | y) ~ p(y | x, h) p(x) p(h)` on companded envelopes C,

C(y) = C( C^-1(x) + gamma C^-1(h) ) + n        (Stevens et al. 2024, eq. 12).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.ultrasound.grid import BLOCK
from domains.ultrasound.physics import compand, decompress, expand_companded
from suite.errors import InputError
from suite.joint import JointPrior, Projection
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior import METHODS
from suite.posterior.base import Guided
from suite.prior import Prior, PriorDenoiser
from suite.process import Process, flow_matching

JOINT: dict[str, Callable[..., Any]] = {
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
SIZE = BLOCK**2


@dataclass(frozen=True)
class Separation:
    """The posterior of tissue and haze, in blocks: a pair `u = (x, h)` has `2 BLOCK^2` channels.

    Attributes:
        tissue, haze: the priors.
        gamma: strength of the haze in the sum.
        noise_std: standard deviation of what neither signal explains, on the companded scale.
        dynamic_range_db: of the log compression.
        clock: times the networks.
    """

    tissue: Prior
    haze: Prior
    gamma: float
    noise_std: float
    dynamic_range_db: float
    clock: Clock

    @cached_property
    def process(self) -> Process:
        return flow_matching()

    @cached_property
    def parts(self) -> list[PriorDenoiser]:
        return [p.denoiser(self.process, clock=lambda: self.clock("network")) for p in (self.tissue, self.haze)]

    @cached_property
    def product(self) -> JointPrior:
        scale = (self.tissue.card.sigma_data**2 + self.haze.card.sigma_data**2) / 2
        return JointPrior(self.parts, (SIZE, SIZE), data_std=scale**0.5)

    def companded(self, grey: Tensor) -> Tensor:
        """`C(y)` in blocks of grey values `(T, rows, columns)`."""
        return F.pixel_unshuffle(compand(decompress(grey, self.dynamic_range_db)[:, None]), BLOCK)

    def pair(self, grey: Tensor, clean: Tensor) -> Tensor:
        """The pair `u` of a picture and an estimate of it without haze, grey values `(T, rows, columns)`."""
        seen, kept = (decompress(v, self.dynamic_range_db)[:, None] for v in (grey, torch.minimum(clean, grey)))
        return torch.cat([F.pixel_unshuffle(compand(v), BLOCK) for v in (kept, seen - kept)], 1)

    def mixed(self, u: Tensor) -> Tensor:
        """`C( C^-1(x) + gamma C^-1(h) )`."""
        x, h = u.clamp(-WIDEST, WIDEST).split(SIZE, 1)  # C^-1 grows like 256^|u|
        return compand(expand_companded(x) + self.gamma * expand_companded(h))

    def measurement(self, y: Tensor) -> Measurement:
        return Measurement(self.mixed, y, self.noise_std, linear=False)

    def share(self, u: Tensor) -> Tensor:
        """Share of tissue in the envelope, `(T, rows, columns)` in 0..1."""
        x, h = expand_companded(u.clamp(0, WIDEST)).split(SIZE, 1)
        return F.pixel_shuffle(1 - self.gamma * h / (x + self.gamma * h).clamp_min(1e-6), BLOCK)[:, 0].clamp(0, 1)


def joint(
    grey: Tensor,
    guess: Tensor,
    problem: Separation,
    *,
    method: str,
    steps: int | None,
    options: dict[str, Any],
    seed: int,
    identity: str,
    chunk: int,
) -> tuple[Tensor, int]:
    """Share of tissue in the envelope, `(T, rows, columns)` in 0..1, and the evaluations of each network.

    Args:
        grey, guess: the picture, and an estimate of it without haze to start from, grey values 0..1.

    Raises:
        InputError: an option the method does not have.
    """
    y, first = problem.companded(grey), problem.pair(grey, guess)
    shares = []
    for i in range(0, len(y), chunk):
        part, init = y[i : i + chunk], first[i : i + chunk]
        solver = joint_method(method, {"init": init} | options)
        noise = Noise.of(seed, [identity] * len(part))  # the same for every frame
        measurement = problem.measurement(part)
        found = solver.run(problem.product, measurement, init, noise=noise, steps=steps or JOINT_STEPS[method])
        shares.append(problem.share(found))
    return torch.cat(shares), problem.parts[0].evaluations // max(1, -(-len(y) // chunk))


def joint_method(name: str, options: dict[str, Any]) -> Guided:
    """The method with these arguments over its settings here.

    Raises:
        InputError: it does not have one of them.
    """
    try:
        method: Guided = JOINT[name](**(SETTINGS[name] | options))
    except TypeError as error:
        raise InputError(f"method {name}: {error}") from None
    return method
