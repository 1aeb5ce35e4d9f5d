"""Smooth random phases, as shim, echo shift and coils leave them; for simulated k-space and for training."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def smooth_phase(count: int, shape: tuple[int, int], rng: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Random phases `(count, 1, ny, nx)` in radians: a constant, a quadratic polynomial and a smooth random field.

    Args:
        count: how many, each of its own.
        shape: (ny, nx).
        rng: random numbers.
        strength: factor on all but the constant, which is uniform over the circle.
    """
    ny, nx = shape
    y, x = torch.linspace(-1, 1, ny)[:, None].expand(shape), torch.linspace(-1, 1, nx)[None, :].expand(shape)
    basis = torch.stack([y, x, y * x, y * y, x * x])
    spread = torch.tensor([1.0, 1.0, 0.4, 0.4, 0.4])
    weights = spread * torch.randn((count, 5), generator=rng) * torch.rand((count, 1), generator=rng)
    constant = 2 * math.pi * torch.rand((count, 1, 1, 1), generator=rng)
    polynomial = torch.einsum("bk,kyx->byx", weights, basis)[:, None]
    coarse = 0.5 * torch.rand((count, 1, 1, 1), generator=rng) * torch.randn((count, 1, 4, 4), generator=rng)
    field = F.interpolate(coarse, shape, mode="bicubic", align_corners=True)
    return constant + strength * (polynomial + field)
