"""Weighted prediction error (Nakatani et al. 2010): late reverberation predicted from the past and taken away, blindly.

    X[f, m] = Y[f, m] - sum_k conj(g[f, k]) Y[f, m - delay - k],     g = argmin sum_m |X[f, m]|^2 / lambda[f, m]

with lambda the power of X itself, by turns. The delay keeps the direct sound and the first reflections.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 16
"""Bins solved at a time, which bounds the memory."""


def delayed(x: Tensor, first: int, count: int) -> Tensor:
    """The past of frames `(bins, frames)`: `(bins, count, frames)`, row k delayed by `first + k` frames."""
    out = x.new_zeros(len(x), count, x.shape[-1])
    for k in range(min(count, x.shape[-1] - first)):
        out[:, k, first + k :] = x[:, : x.shape[-1] - first - k]
    return out


def wpe(y: Tensor, taps: int = 40, delay: int = 3, turns: int = 3) -> Tensor:
    """The spectrum `(bins, frames)` of one channel without its late reverberation.

    Args:
        taps: frames of the past that the prediction uses.
        delay: frames before it begins, nearly a window.
        turns: estimates of lambda.
    """
    parts = [_solved(part, taps, delay, turns) for part in y.split(CHUNK)]
    return torch.cat(parts)


def _solved(y: Tensor, taps: int, delay: int, turns: int) -> Tensor:
    past, x = delayed(y, delay, taps), y
    for _ in range(turns):
        power = x.abs().square()
        weight = 1 / power.clamp_min(1e-6 * float(power.max()) + 1e-30)[:, None]
        correlation = (past * weight) @ past.mH
        ridge = 1e-6 * correlation.diagonal(dim1=-2, dim2=-1).real.mean(-1) + 1e-12
        correlation = correlation + torch.diag_embed(ridge[:, None].expand(-1, taps)).to(y.dtype)
        g = torch.linalg.solve(correlation, (past * weight) @ y.conj()[..., None])
        x = y - (g.mH @ past)[:, 0]
    return x
