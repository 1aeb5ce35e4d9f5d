"""Half-quadratic splitting: a guided denoiser and a falling noise level, with no noise in the state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.solver import Callback


def falling_levels(first: float, last: float | Tensor, steps: int, like: Tensor) -> Tensor:
    """Noise levels q = sigma/alpha from `first` to `last`, evenly spaced in log q: `(steps, B or 1, 1, ...)` in float64.

    `last` is a number, or one for each item; where it exceeds `first`, the level stays at `first`.
    """
    end = (
        torch.as_tensor(last, dtype=torch.float64, device=like.device)
        .clamp(max=first)
        .reshape(-1, *(1,) * (like.ndim - 1))
    )
    share = torch.linspace(0, 1, steps, dtype=torch.float64, device=like.device) if steps > 1 else end.new_ones(1)
    share = share.reshape(-1, *(1,) * like.ndim)
    return torch.exp((1 - share) * math.log(first) + share * end.log())


def split(
    guide: Denoiser,
    levels: Tensor,
    x: Tensor,
    *,
    momentum: float = 0.0,
    y: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """`x_k = guide(a_k, q_k)` with `a_k = x_(k-1) + momentum (x_(k-1) - x_(k-2))`.

    Plug-and-play half-quadratic splitting with the noise level as its continuation parameter (Zhang et al. 2021, DPIR,
    algorithm 1), and the extrapolation of inertial proximal methods (Polyak 1964; Ochs et al. 2014, iPiano): few steps come
    close to many.

    Args:
        guide: `E[x0 | x_t]` pulled towards the data.
        levels: noise levels, from `falling_levels`.
        x: estimate of the signal to start from, `(B, C, *spatial)`.
        momentum: share of the last change to go on by, below 1.
        y: anchor of an anchored process.
    """
    process, none, last = guide.process, torch.zeros_like(x), x
    for k, t in enumerate(process.time_of_log_snr(-levels.log()), 1):
        ahead = x + momentum * (x - last)
        last, x = x, guide(process.marginal(ahead, t, none, y), t, y)
        if callback is not None:
            callback(k, x, x)
    return x
