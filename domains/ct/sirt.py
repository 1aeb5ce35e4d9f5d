"""Iterative least squares: SIRT and CGLS. Both work on a batch, every slice with its own steps.

Their regularisation is the number of iterations: noise grows with it. A cone-beam scan is an item of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from domains.ct.cone import ConeProjector
from domains.ct.projector import Projector
from suite.linalg import dot, expand


def sirt(
    projector: Projector | ConeProjector,
    sinogram: Tensor,
    weights: Tensor | None = None,
    *,
    iterations: int = 100,
    start: Tensor | None = None,
) -> Tensor:
    """Reconstruct `mu` in 1/mm, `(B, C, ny, nx)`: `x <- max(0, x + A^T V (y - A x) / (A^T V A 1))`.

    Without weights `V = 1 / (A 1)`, the method of Gilbert (1972); with weights `V = W`, the separable surrogates of
    Erdogan and Fessler (1999).

    Args:
        projector: the scan's operator.
        sinogram: line integrals `(B, C, V, K)`.
        weights: inverse variances of their noise, broadcastable to the sinogram.
        iterations: applications of `A` and `A^T`.
        start: first image (default zero).
    """
    lengths = projector(torch.ones_like(projector.adjoint(sinogram[:1, :1])))
    v = torch.where(lengths > 0, 1 / lengths, 0.0) if weights is None else weights
    v = v.expand_as(sinogram)
    step = projector.adjoint(v * lengths)
    step = torch.where(step > 0, 1 / step, 0.0)
    x = torch.zeros_like(step) if start is None else start
    for _ in range(iterations):
        x = (x + step * projector.adjoint(v * (sinogram - projector(x)))).clamp_min_(0)
    return x


def cgls(
    projector: Projector | ConeProjector,
    sinogram: Tensor,
    weights: Tensor | None = None,
    *,
    iterations: int = 30,
    start: Tensor | None = None,
) -> Tensor:
    """Reconstruct `mu` in 1/mm, `(B, C, ny, nx)`, by conjugate gradients on the (weighted) least-squares problem.

    Bjorck, Numerical Methods for Least Squares Problems (1996), algorithm 7.4.1. With weights an item stops of itself at
    the first image that fits its data to within their noise, `sum w (A x - y)^2 <= number of rays with weight`
    (Morozov's discrepancy principle).

    Args:
        projector: the scan's operator.
        sinogram: line integrals `(B, C, V, K)`.
        weights: inverse variances of their noise, broadcastable to the sinogram.
        iterations: at most this many.
        start: first image (default zero).
    """
    root = torch.ones_like(sinogram) if weights is None else weights.expand_as(sinogram).sqrt()
    x = torch.zeros_like(projector.adjoint(sinogram)) if start is None else start
    r = root * (sinogram - projector(x))
    limit = (root > 0).flatten(1).sum(1) if weights is not None else r.new_zeros(len(r))
    s = projector.adjoint(root * r)
    p, gamma = s, dot(s, s)
    for _ in range(iterations):
        active = (dot(r, r) > limit) & (gamma > 0)
        if not bool(active.any()):
            break
        q = root * projector(p)
        step = torch.where(active, gamma / torch.where(active, dot(q, q), 1.0), 0.0)
        x = x + expand(step, x) * p
        r = r - expand(step, r) * q
        s = projector.adjoint(root * r)
        previous, gamma = gamma, dot(s, s)
        p = s + expand(torch.where(active, gamma / torch.where(active, previous, 1.0), 0.0), s) * p
    return x
