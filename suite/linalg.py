"""Matrix-free linear algebra on batches: every batch item has its own inner products, step sizes and stopping.

All inner products are real, `Re <a, b>`, also for complex tensors: an operator that is Hermitian there may map real
images to complex data and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from suite.noise import Noise

if TYPE_CHECKING:
    from suite.operators.base import LinearOperator

TensorMap = Callable[[Tensor], Tensor]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """`Re <a_i, b_i>` for each batch item: shape `(B,)`, in the precision of the tensors."""
    a, b = a.flatten(1), b.flatten(1)
    if a.is_complex() and b.is_complex():
        a, b = torch.view_as_real(a).flatten(1), torch.view_as_real(b).flatten(1)
    elif a.is_complex() or b.is_complex():
        a, b = a.real, b.real
    product: Tensor = torch.linalg.vecdot(a, b)
    return product


def expand(scalar: Tensor, like: Tensor) -> Tensor:
    """`(B,)` to `(B, 1, ..., 1)` so that it broadcasts against `like`."""
    return scalar.reshape(-1, *(1,) * (like.ndim - 1))


def conjugate_gradient(
    normal: TensorMap,
    rhs: Tensor,
    x0: Tensor | None = None,
    *,
    iterations: int = 50,
    tolerance: float | Tensor = 0.0,
    preconditioner: TensorMap | None = None,
) -> Tensor:
    """Solve `N x = rhs` for a Hermitian positive-definite `N`, each batch item with its own step sizes.

    Preconditioned conjugate gradients (Hestenes and Stiefel 1952; Saad 2003, algorithm 9.1). A semi-definite `N` is
    allowed when `rhs` lies in its range; from a zero start the result is then the solution of least norm. An item whose
    residual has reached its tolerance (never below the rounding unit), or whose search direction has no curvature left,
    is frozen for good. Not-a-number in an item reaches its result.

    Args:
        normal: applies `N` to a batch `(B, ...)`.
        rhs: right-hand side `(B, ...)`.
        x0: start (default zero), `(B, ...)` or `(1, ...)`.
        iterations: at most this many applications of `N` (one more when `x0` is given).
        tolerance: an item is finished once `|r| <= tolerance |rhs|`; a number, or one per item `(B,)`.
        preconditioner: applies an approximation of `N^-1`, Hermitian positive definite.
    """
    x = torch.zeros_like(rhs) if x0 is None else x0.expand_as(rhs)
    r = rhs if x0 is None else rhs - normal(x)
    z = r if preconditioner is None else preconditioner(r)
    p, rz = z, dot(r, z)
    rr = rz if preconditioner is None else dot(r, r)
    eps = torch.finfo(rhs.dtype).eps
    relative = torch.as_tensor(tolerance, dtype=rr.dtype, device=rr.device).clamp_min(eps)
    bb = dot(rhs, rhs)
    limit = relative**2 * bb
    active = ~(rr <= limit) & ~(rz <= 0)  # written so that a NaN stays active and shows
    steepest = torch.zeros_like(rr)
    for _ in range(iterations):
        if not active.any():
            break
        q = normal(p)
        curvature = dot(p, q)
        length = dot(p, p)
        steepest = torch.maximum(steepest, curvature / length)
        # So little curvature is rounding: the direction lies in the null space and a step would blow it up. More is
        # forgiven while the residual is large, as it then carries data (a weak prior beside a strong measurement).
        rounding = torch.where(rr <= eps * bb, 16 * eps, eps**1.5)
        active = active & ~(curvature <= rounding * steepest * length)
        step = torch.where(active, rz / torch.where(active, curvature, 1.0), 0.0)
        x = torch.addcmul(x, expand(step, x), p)
        r = torch.addcmul(r, expand(step, r), q, value=-1)
        z = r if preconditioner is None else preconditioner(r)
        rz_new = dot(r, z)
        rr = rz_new if preconditioner is None else dot(r, r)
        active = active & ~(rr <= limit) & ~(rz_new <= 0)
        ratio = torch.where(active, rz_new / torch.where(active, rz, 1.0), 0.0)
        p = torch.addcmul(z, expand(ratio, p), p)
        rz = rz_new
    return x


def pseudo_inverse(op: LinearOperator, y: Tensor, *, iterations: int = 50, tolerance: float | Tensor = 0.0) -> Tensor:
    """`A^+ y`: the least-squares solution of least norm, by conjugate gradients on `A^H A x = A^H y` from zero.

    With few iterations on an ill-conditioned `A` it is the usual regularised answer: directions of small singular
    values are filled in last. `y` is `(B, *range)`; the result is `(B, *domain)`.
    """
    return conjugate_gradient(op.normal, op.adjoint(y), iterations=iterations, tolerance=tolerance)


def operator_norm(
    op: LinearOperator, like: Tensor, *, iterations: int = 50, tolerance: float = 1e-4, seed: int = 0
) -> float:
    """`||A||_2` by power iteration on `A^H A`, from a seeded start: the same number in every call.

    A lower bound that is usually within a per mille; where the largest singular values crowd together it comes nearer
    with a smaller tolerance and more iterations.

    Args:
        op: the operator.
        like: a tensor of the domain's shape with batch, `(1, *domain)`; only shape, dtype and device are used.
        iterations: at most this many applications of `A^H A`.
        tolerance: stop when the estimate of `||A||^2` grows by less than this share.
        seed: of the start vector.
    """
    x = Noise.of(seed).normal(like)
    normal, value = op.normal, 0.0
    for _ in range(iterations):
        x = normal(x / torch.linalg.vector_norm(x))
        previous, value = value, float(torch.linalg.vector_norm(x))
        if value - previous <= tolerance * value:
            break
    return math.sqrt(value)


def adjoint_error(op: LinearOperator, x: Tensor, y: Tensor) -> float:
    """`|<A x, y> - <x, A^H y>| / (|A x| |y|)`, worst over the batch: the exactness of the adjoint."""
    ax, ahy = op.forward(x), op.adjoint(y)
    gap = (dot(ax, y) - dot(x, ahy)).abs()
    return float((gap / (dot(ax, ax) * dot(y, y)).sqrt().clamp_min(1e-30)).max())


def lanczos_function(normal: TensorMap, v: Tensor, f: TensorMap, *, iterations: int = 20) -> Tensor:
    """`f(N) v` for each batch item, for a scalar function `f` of a Hermitian positive semi-definite `N`.

    The Lanczos approximation `|v| Q f(T) e_1` (Higham 2008, "Functions of Matrices", section 13.2) with full
    reorthogonalisation. Exact once the iterations reach the number of distinct eigenvalues that `v` touches; otherwise
    as good as the best polynomial of that degree fits `f` on the spectrum. Memory: `iterations` tensors like `v`.

    Args:
        normal: applies `N` to a batch `(B, ...)`.
        v: the vectors `(B, ...)`.
        f: maps eigenvalues `(B, k)`, float64 and >= 0, elementwise to `(B, k)`; finite there. It may differ per item.
        iterations: applications of `N`.
    """
    norm = dot(v, v).sqrt()
    nonzero = norm > 0
    q = v / expand(torch.where(nonzero, norm, 1.0), v)
    basis: list[Tensor] = []
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    alive, size = nonzero, torch.zeros_like(norm)
    for k in range(iterations):
        w = normal(q)
        # A finished item continues with a decoupled block whose eigenvalue is already in its spectrum.
        alphas.append(torch.where(alive, dot(q, w), alphas[0] if alphas else torch.ones_like(norm)))
        basis.append(q)
        if k == iterations - 1:
            break
        for _ in range(2):  # classical Gram-Schmidt, twice: orthogonal to rounding
            for b in basis:
                w = w - expand(dot(b, w), b) * b
        beta = dot(w, w).sqrt()
        size = torch.maximum(size, alphas[-1].abs() + beta)
        alive = alive & (beta > 100 * torch.finfo(v.dtype).eps * size)
        if not alive.any():
            break
        betas.append(torch.where(alive, beta, 0.0))
        q = torch.where(expand(alive, w), w / expand(torch.where(alive, beta, 1.0), w), 0.0)
    tridiagonal = torch.diag_embed(torch.stack(alphas, 1).double())
    if betas:
        off = torch.diag_embed(torch.stack(betas, 1).double(), offset=1)
        tridiagonal = tridiagonal + off + off.mT
    eigenvalues, vectors = torch.linalg.eigh(tridiagonal)
    weights = (vectors @ (f(eigenvalues.clamp_min(0)) * vectors[:, 0]).unsqueeze(-1)).squeeze(-1)
    weights = (weights * norm.double().unsqueeze(1)).to(norm.dtype)
    out = torch.zeros_like(v)
    for k, b in enumerate(basis):
        out = out + expand(weights[:, k], b) * b
    return out
