"""Total-variation reconstruction of complex images."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.operators import LinearOperator


def gradient(x: Tensor) -> Tensor:
    """Forward differences along x and y, zero at the far edge: `(2, *x.shape)`."""
    g = torch.zeros((2, *x.shape), dtype=x.dtype, device=x.device)
    g[0, ..., :-1] = x[..., 1:] - x[..., :-1]
    g[1, ..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
    return g


def gradient_adjoint(g: Tensor) -> Tensor:
    """The transpose of `gradient`; the differences across the far edge must be zero."""
    out = -(g[0] + g[1])
    out[..., 1:] += g[0, ..., :-1]
    out[..., 1:, :] += g[1, ..., :-1, :]
    return out


def total_variation(
    operator: LinearOperator, y: Tensor, start: Tensor, penalty: Tensor, curvature: float = 1.0, iterations: int = 120
) -> Tensor:
    """`argmin |A x - y|^2 / 2 + penalty sum |grad x|`, the gradient's length over both axes and both parts.

    Primal-dual splitting with the data term's gradient taken explicitly (Condat 2013, Vu 2013, algorithm 3.1): with
    `|A|^2 <= L` and `|grad|^2 <= 8`, `1/tau - 8 sigma >= L/2`.

    Args:
        operator: `A`; y: data `(B, C, ny, nx)`; start: first image `(B, 1, ny, nx)`.
        penalty: one for each item `(B,)`.
        curvature: L; 1 on a grid, because the maps have unit norm.
        iterations: applications of `A^H A`.
    """
    normal, rhs = operator.normal, operator.adjoint(y)
    limit = penalty.reshape(-1, 1, 1, 1)
    tau = 0.9 / curvature
    sigma = (1 / tau - 0.5 * curvature) / 8
    x, p = start, torch.zeros_like(gradient(start))
    for _ in range(iterations):
        new = x - tau * (normal(x) - rhs + gradient_adjoint(p))
        p = p + sigma * gradient(2 * new - x)
        length = p.abs().square().sum(0).sqrt()
        p = p * (limit / length.clamp_min(1e-20)).clamp_max(1)
        x = new
    return x
