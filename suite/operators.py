"""Linear operators with exact adjoints: an algebra that composes, stacks, scales, and solves.

An operator maps a batch `(B, *domain)` to a batch `(B, *range)`; every batch item is independent. The inner product of
both spaces is the real one, `Re <a, b>`, so an operator from real images to complex measurements has an adjoint too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


class LinearOperator:
    """A linear map `A` between batched tensors.

    A subclass implements `forward` and `adjoint`; everything else follows. `A(x)` and `A.H(y)` apply them,
    `A @ B` composes, `A + B` adds, `c * A` scales.

    Attributes:
        domain_shape: shape of one input item, without the batch dimension; None when any shape is accepted.
        domain_dtype: dtype class of the input, `torch.float32` (real) or `torch.complex64` (complex).
    """

    domain_shape: tuple[int, ...] | None = None
    domain_dtype: torch.dtype = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """`A x` for `x` of shape `(B, *domain_shape)`."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def adjoint(self, y: Tensor) -> Tensor:
        """`A^H y` with respect to `Re <., .>`."""
        raise TypeError(f"{type(self).__name__} defines no adjoint")

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    @property
    def H(self) -> LinearOperator:
        return Adjoint(self)

    @property
    def normal(self) -> LinearOperator:
        """`A^H A`. Override where it is cheaper than the two factors."""
        return Compose(self.H, self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Compose(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, other)

    def __rmul__(self, scale: float | Tensor) -> LinearOperator:
        return Compose(Diagonal(scale), self)


class Adjoint(LinearOperator):
    """`A^H` as an operator of its own."""

    def __init__(self, op: LinearOperator) -> None:
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.op.forward(y)

    @property
    def H(self) -> LinearOperator:
        return self.op


class Compose(LinearOperator):
    """`A B ... Z`, applied from the right."""

    def __init__(self, *ops: LinearOperator) -> None:
        self.ops = tuple(o for op in ops for o in (op.ops if isinstance(op, Compose) else (op,)))
        self.domain_shape = self.ops[-1].domain_shape
        self.domain_dtype = self.ops[-1].domain_dtype

    def forward(self, x: Tensor) -> Tensor:
        for op in reversed(self.ops):
            x = op.forward(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for op in self.ops:
            y = op.adjoint(y)
        return y


class Sum(LinearOperator):
    """`A + B + ...`"""

    def __init__(self, *ops: LinearOperator) -> None:
        self.ops = ops
        self.domain_shape = ops[0].domain_shape
        self.domain_dtype = ops[0].domain_dtype

    def forward(self, x: Tensor) -> Tensor:
        out = self.ops[0].forward(x)
        for op in self.ops[1:]:
            out = out + op.forward(x)
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        out = self.ops[0].adjoint(y)
        for op in self.ops[1:]:
            out = out + op.adjoint(y)
        return out


class Identity(LinearOperator):
    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


class Diagonal(LinearOperator):
    """Pointwise product with `d` (a scalar, or a tensor that broadcasts against `(B, *shape)`); masks, weights, scales."""

    def __init__(self, d: float | Tensor) -> None:
        self.d = d

    def forward(self, x: Tensor) -> Tensor:
        return self.d * x

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.d.conj() if isinstance(self.d, Tensor) else self.d) * y


# --- solving -----------------------------------------------------------------------------------------------------------


def dot(a: Tensor, b: Tensor) -> Tensor:
    """`Re <a_i, b_i>` for each batch item: shape `(B,)`, accumulated in float32 or better."""
    a, b = a.flatten(1), b.flatten(1)
    if a.is_complex() or b.is_complex():
        return torch.linalg.vecdot(a, b).real
    return torch.linalg.vecdot(a, b)


def expand(scalar: Tensor, like: Tensor) -> Tensor:
    """`(B,)` to `(B, 1, ..., 1)` so that it broadcasts against `like`."""
    return scalar.reshape(-1, *(1,) * (like.ndim - 1))


def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    rhs: Tensor,
    x0: Tensor | None = None,
    *,
    iterations: int = 50,
    tolerance: float = 0.0,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Solve `N x = rhs` for a Hermitian positive-definite `N`, each batch item with its own step sizes.

    Preconditioned conjugate gradients (Hestenes and Stiefel 1952; Saad 2003, algorithm 9.1).

    Args:
        normal: applies `N` to a batch `(B, ...)`.
        rhs: right-hand side `(B, ...)`.
        x0: start (default zero).
        iterations: at most this many applications of `N` (one more when `x0` is given).
        tolerance: an item is frozen once `|r| <= tolerance |rhs|`; the loop ends when all are.
        preconditioner: applies an approximation of `N^-1`, Hermitian positive definite.
    """
    x = torch.zeros_like(rhs) if x0 is None else x0
    r = rhs if x0 is None else rhs - normal(x0)
    z = r if preconditioner is None else preconditioner(r)
    p, rz = z, dot(r, z)
    limit = tolerance**2 * dot(rhs, rhs)
    tiny = torch.finfo(rz.dtype).tiny
    for _ in range(iterations):
        active = (dot(r, r) > limit) & (rz > tiny)
        if not active.any():
            break
        q = normal(p)
        step = torch.where(active, rz / dot(p, q).clamp_min(tiny), 0.0)
        x = x + expand(step, x) * p
        r = r - expand(step, r) * q
        z = r if preconditioner is None else preconditioner(r)
        rz_new = dot(r, z)
        p = z + expand(torch.where(active, rz_new / rz.clamp_min(tiny), 0.0), p) * p
        rz = torch.where(active, rz_new, rz)
    return x


def operator_norm(
    op: LinearOperator, like: Tensor, *, iterations: int = 30, tolerance: float = 1e-3, seed: int = 0
) -> float:
    """`||A||_2` by power iteration on `A^H A`, from a seeded start.

    Args:
        op: the operator.
        like: a tensor of the domain's shape with batch, `(1, *domain)`; only shape, dtype and device are used.
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(like.shape, generator=g, dtype=like.dtype).to(like.device)
    previous = 0.0
    normal = op.normal
    for _ in range(iterations):
        x = x / torch.linalg.vector_norm(x)
        x = normal(x)
        value = float(torch.linalg.vector_norm(x))
        if abs(value - previous) <= tolerance * value:
            break
        previous = value
    return math.sqrt(value)


def adjoint_error(op: LinearOperator, x: Tensor, y: Tensor) -> float:
    """`|<A x, y> - <x, A^H y>| / (|A x| |y|)`, worst over the batch: the exactness of the adjoint."""
    ax, ahy = op.forward(x), op.adjoint(y)
    gap = (dot(ax, y) - dot(x, ahy)).abs()
    return float((gap / (dot(ax, ax) * dot(y, y)).sqrt().clamp_min(1e-30)).max())


