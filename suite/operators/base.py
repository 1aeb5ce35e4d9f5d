"""The operator itself and its algebra: adjoint, product, sum, identity, diagonal, and the SVD protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from suite.errors import InputError


@dataclass(frozen=True)
class SVD:
    """`A = U diag(s) V^H` as callables on batches.

    `V` is unitary on the whole domain (the real inner product), so `v(vh(x)) = x`. Coefficients with `s = 0` span the
    null space; there `u` and `uh` carry no meaning. White noise in the domain, passed through `vh`, is white in the
    coefficients; for a real domain with complex (Fourier) coefficients this is the way to draw it, as they keep their
    Hermitian symmetry.

    Attributes:
        singular_values: real, >= 0, broadcastable against `vh(x)`.
        vh: `V^H`: domain -> coefficients.
        v: `V`: coefficients -> domain.
        u: `U`: coefficients -> range.
        uh: `U^H`: range -> coefficients.
    """

    singular_values: Tensor
    vh: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]
    u: Callable[[Tensor], Tensor]
    uh: Callable[[Tensor], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


class LinearOperator:
    """A linear map `A` between batched tensors.

    A subclass implements `forward` and `adjoint`; everything else follows. `A(x)` and `A.H(y)` apply them,
    `A @ B` composes, `A + B` and `A - B` add, `c * A` scales.

    Attributes:
        domain_shape: shape of one input item, without the batch dimension; None when any shape is accepted.
        domain_dtype: dtype class of the input, `torch.float32` (real) or `torch.complex64` (complex).
        unitary: `A^H A = A A^H = 1`.
    """

    domain_shape: tuple[int, ...] | None = None
    domain_dtype: torch.dtype = torch.float32
    unitary: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """`A x` for `x` of shape `(B, *domain_shape)`."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def adjoint(self, y: Tensor) -> Tensor:
        """`A^H y` with respect to `Re <., .>`."""
        raise TypeError(f"{type(self).__name__} defines no adjoint")

    def svd(self) -> SVD:
        """Singular value decomposition in closed form; `InputError` where there is none."""
        if self.unitary:
            return SVD(torch.ones(()), self.forward, self.adjoint, _identity, _identity)
        raise InputError(
            f"{self!r} has no singular value decomposition in closed form; Diagonal (mask), Subsample, Matrix, "
            "FourierDiagonal and periodic Convolve have one, also when multiplied by unitary operators (FFT, ToComplex)"
        )

    def __repr__(self) -> str:
        return type(self).__name__

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    @property
    def H(self) -> LinearOperator:
        return Adjoint(self)

    @property
    def normal(self) -> LinearOperator:
        """`A^H A`. Override where it is cheaper than the two factors."""
        return Identity() if self.unitary else Compose(self.H, self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Compose(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, -1.0 * other)

    def __rmul__(self, scale: complex | Tensor) -> LinearOperator:
        return Compose(Diagonal(scale), self)


class Adjoint(LinearOperator):
    """`A^H` as an operator of its own."""

    def __init__(self, op: LinearOperator) -> None:
        self.op = op
        self.unitary = op.unitary

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
        self.ops: tuple[LinearOperator, ...] = tuple(
            o for op in ops for o in (op.ops if isinstance(op, Compose) else (op,))
        )
        self.domain_shape = self.ops[-1].domain_shape
        self.domain_dtype = self.ops[-1].domain_dtype
        self.unitary = all(op.unitary for op in self.ops)

    def forward(self, x: Tensor) -> Tensor:
        for op in reversed(self.ops):
            x = op.forward(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for op in self.ops:
            y = op.adjoint(y)
        return y

    def __repr__(self) -> str:
        return " @ ".join(repr(op) for op in self.ops)

    @property
    def H(self) -> LinearOperator:
        return Compose(*(op.H for op in reversed(self.ops)))

    @property
    def normal(self) -> LinearOperator:
        """`Z^H ... (A^H A) ... Z`: a unitary factor on the left drops out, a number on the left moves to the front."""
        outer = self.ops[0].normal
        if len(self.ops) == 1:
            return outer
        inner = Compose(*self.ops[1:])
        if isinstance(outer, Identity):
            return inner.normal
        if isinstance(outer, Diagonal) and outer.is_number:
            return Compose(outer, inner.normal)
        return Compose(inner.H, outer, inner)

    def svd(self) -> SVD:
        first, last = self.ops[0], self.ops[-1]
        if len(self.ops) == 1:
            return first.svd()
        for i, op in enumerate(self.ops):
            if isinstance(op, Diagonal) and op.is_number and (i == 0 or not op.d.is_complex()):
                return _scaled(Compose(*self.ops[:i], *self.ops[i + 1 :]).svd(), op.d)
        if last.unitary:
            left = Compose(*self.ops[:-1]).svd()
            return replace(left, vh=lambda x: left.vh(last.forward(x)), v=lambda c: last.adjoint(left.v(c)))
        right = Compose(*self.ops[1:])
        if isinstance(first.normal, Identity):  # an isometry
            inner = right.svd()
            return replace(inner, u=lambda c: first.forward(inner.u(c)), uh=lambda y: inner.uh(first.adjoint(y)))
        if isinstance(first, Diagonal) and isinstance(self.ops[1], Diagonal):
            return Compose(Diagonal(first.d * self.ops[1].d), *self.ops[2:]).svd()
        return super().svd()


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
    """`A x = x`."""

    unitary = True

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


class Diagonal(LinearOperator):
    """Pointwise product with `d` (a scalar, or a tensor that broadcasts against `(B, *shape)`); masks, weights, scales.

    A complex `d` needs a complex domain. A mask leaves zeros where nothing was measured; `Subsample` keeps the samples.
    """

    def __init__(self, d: complex | Tensor) -> None:
        if not isinstance(d, Tensor):  # a 0-d float64 keeps the number exact and promotes nothing
            d = torch.tensor(d, dtype=torch.complex128 if isinstance(d, complex) else torch.float64)
        self.d = d if d.is_floating_point() or d.is_complex() else d.to(torch.float32)
        if self.d.is_complex():
            self.domain_dtype = torch.complex64

    @property
    def is_number(self) -> bool:
        return self.d.ndim == 0

    def forward(self, x: Tensor) -> Tensor:
        return self.d * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.d.conj() * y

    @property
    def normal(self) -> LinearOperator:
        return Diagonal(self.d.abs() ** 2)

    def svd(self) -> SVD:
        phase = torch.sgn(self.d)
        return SVD(self.d.abs(), _identity, _identity, lambda c: phase * c, lambda y: phase.conj() * y)


def _scaled(svd: SVD, scale: Tensor) -> SVD:
    """SVD of `scale * A`."""
    phase = torch.sgn(scale)
    return SVD(
        scale.abs() * svd.singular_values,
        svd.vh,
        svd.v,
        lambda c: phase * svd.u(c),
        lambda y: svd.uh(phase.conj() * y),
    )
