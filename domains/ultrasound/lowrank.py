"""Haze of low rank over time, tissue by the learned prior: nuclear-norm diffusion (after Stevens et al., arXiv 2509.20886).

Companded pictures `C(y) = x + h + n` of a whole cine, `x_k ~ p(x)` for every frame k by itself, and h, whose Casorati matrix
(pixels by frames) has a small nuclear norm, so that the joint posterior is

    p(x, h | y) ~ exp( -|y - x - h|^2 / (2 s^2) - tau |h|_* / s^2 ) prod_k p(x_k).

At every step of the reverse process the prior gives `D = E[x | x_t]` with an error of variance r_t^2; then

    h = SVT(y - D),       x' = D + r_t^2 / (r_t^2 + s^2) (y - h - D),

the first the exact minimiser over h for that x (Cai, Candès and Shen 2010), the second the exact mean of x for that h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.ultrasound.grid import BLOCK
from domains.ultrasound.physics import compand, compress, decompress, expand_companded
from suite.denoiser import Denoiser
from suite.grid import time_grid
from suite.noise import Noise
from suite.posterior.base import error_variance
from suite.prior import Prior
from suite.process import flow_matching
from suite.solver import DDIM, sample

NUCLEAR_STEPS = 10
START = 0.02
"""Time to which the first estimate is noised (SeqDiff: start from the picture, not from noise)."""


def singular_value_threshold(frames: Tensor, tau: float) -> Tensor:
    """`argmin_h |frames - h|^2 / 2 + tau |h|_*` over the Casorati matrix of `(T, ...)`: singular values less tau, at least 0."""
    casorati = frames.flatten(1).double()
    power, u = torch.linalg.eigh(casorati @ casorati.T)  # T x T: frames are few, pixels many
    values = power.clamp_min(0).sqrt()
    shrunk = torch.where(values > tau, 1 - tau / values.clamp_min(1e-12), 0)
    return ((u * shrunk) @ (u.T @ casorati)).to(frames.dtype).reshape(frames.shape)


def noise_threshold(std: float, frames: int, pixels: int) -> float:
    """`std (sqrt(frames) + sqrt(pixels))`: the largest singular value of so much white noise."""
    return std * (math.sqrt(frames) + math.sqrt(pixels))


class LowRankHaze(Denoiser):
    """`E[x | x_t]` of every frame, corrected by what remains of the picture without haze of low rank.

    Args:
        prior: denoiser of single frames.
        y: companded pictures `(T, C, rows, columns)`.
        noise_std: s.
        data_std: of the prior's data.
        weight: multiplies the threshold; more leaves less haze.
    """

    def __init__(self, prior: Denoiser, y: Tensor, noise_std: float, data_std: float, weight: float) -> None:
        super().__init__(prior.process)
        self.prior, self.y, self.noise_std, self.data_std = prior, y, noise_std, data_std
        self.tau = weight * noise_threshold(noise_std, len(y), y[0].numel())
        self.haze = torch.zeros_like(y)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        mean = self.prior(x, t)
        self.haze = singular_value_threshold(self.y - mean, self.tau).clamp_min(0).minimum(self.y)
        variance = error_variance(self.process, t, self.data_std)
        gain = (variance / (variance + self.noise_std**2)).to(x.dtype)
        return mean + gain * (self.y - self.haze - mean)


def nuclear(
    grey: Tensor,
    guess: Tensor,
    tissue: Prior,
    *,
    noise_std: float,
    dynamic_range_db: float,
    steps: int | None,
    weight: float = 1.0,
    start: float = START,
    seed: int,
    identity: str,
    clock: Callable[[str], AbstractContextManager[Any]],
) -> tuple[Tensor, int]:
    """Haze `(T, rows, columns)` of grey values 0..1, and the evaluations of the network.

    Args:
        grey, guess: the picture, and an estimate of it without haze to start from, grey values 0..1.
        noise_std: of what neither signal explains, on the companded scale.
        weight: of the nuclear norm, over that at which noise alone has no low rank.
        start: time to which the guess is noised.
    """
    process = flow_matching()
    y, x0 = (F.pixel_unshuffle(compand(decompress(v, dynamic_range_db))[:, None], BLOCK) for v in (grey, guess))
    guide = LowRankHaze(
        tissue.denoiser(process, clock=lambda: clock("network")), y, noise_std, tissue.card.sigma_data, weight
    )
    eps = Noise.of(seed, [identity]).normal(x0[:1])  # the same for every frame
    times = time_grid(process, steps or NUCLEAR_STEPS, start=start)
    x = process.marginal(x0, times[:1].to(x0.device).reshape(1, 1, 1, 1), eps)
    sample(guide, DDIM(), times, x)
    kept = F.pixel_shuffle(expand_companded((y - guide.haze).clamp_min(0)), BLOCK)[:, 0]
    return (grey - compress(kept, dynamic_range_db)).clamp_min(0), steps or NUCLEAR_STEPS
