"""Operators that rearrange: stacks and blocks of operators, slices of a volume, samples of a grid, real and complex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import EllipsisType

import torch
from torch import Tensor

from suite.errors import InputError
from suite.operators.base import SVD, Diagonal, Identity, LinearOperator, Sum


class Stack(LinearOperator):
    """Several measurements of one signal, `[A; B; ...]`: the flattened blocks one after another, range `(B, M)`.

    Args:
        ops: the operators; their ranges are all real or all complex.
        shapes: shape of one range item of each, without the batch dimension.
    """

    def __init__(self, *ops: LinearOperator, shapes: Sequence[Sequence[int]]) -> None:
        if len(ops) != len(shapes):
            raise InputError(f"a stack of {len(ops)} operators needs as many range shapes, not {len(shapes)}")
        self.ops = ops
        self.shapes = tuple(tuple(s) for s in shapes)
        self.domain_shape = ops[0].domain_shape
        self.domain_dtype = ops[0].domain_dtype

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """Measurements `(B, *shape_i)` of the operators to one tensor of the stack's range."""
        if len({b.is_complex() for b in blocks}) > 1:
            raise TypeError("the ranges of a stack must be all real or all complex")
        return torch.cat([b.flatten(1) for b in blocks], 1)

    def split(self, y: Tensor) -> list[Tensor]:
        """One tensor `(B, *shape_i)` for each operator."""
        parts = y.split([math.prod(s) for s in self.shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        return self.join([op.forward(x) for op in self.ops])

    def adjoint(self, y: Tensor) -> Tensor:
        first, *rest = (op.adjoint(part) for op, part in zip(self.ops, self.split(y), strict=True))
        return sum(rest, first)

    @property
    def normal(self) -> LinearOperator:
        return Sum(*(op.normal for op in self.ops))


class Block(LinearOperator):
    """Several signals in one measurement, `[A B ...]`: `A x_1 + B x_2 + ...`, the signals side by side as channels.

    Args:
        ops: one operator for each signal.
        channels: channels of each signal in `x = (x_1, x_2, ...)`, along dimension 1.
    """

    def __init__(self, *ops: LinearOperator, channels: Sequence[int]) -> None:
        if len(ops) != len(channels):
            raise InputError(f"a block of {len(ops)} operators needs as many channel counts, not {len(channels)}")
        self.ops = ops
        self.channels = list(channels)
        self.domain_dtype = ops[0].domain_dtype

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = (op.forward(part) for op, part in zip(self.ops, x.split(self.channels, 1), strict=True))
        return sum(rest, first)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([op.adjoint(y) for op in self.ops], 1)


class SliceAxis(LinearOperator):
    """One operator on every slice of a volume: the slices along `axis` are treated as a batch.

    Args:
        op: acts on slices `(B, C, *spatial)`.
        axis: dimension of the volume `(B, C, ..., n, ...)`, counted with the batch, >= 1; it has the same place in the
            range.
    """

    def __init__(self, op: LinearOperator, axis: int = 2) -> None:
        if axis < 1:
            raise InputError(f"the slice axis counts from the batch dimension and must be at least 1, not {axis}")
        self.op = op
        self.axis = axis
        self.domain_dtype = op.domain_dtype
        self.unitary = op.unitary

    def _each(self, op: LinearOperator, x: Tensor) -> Tensor:
        slices = x.movedim(self.axis, 1)
        out: Tensor = op.forward(slices.flatten(0, 1)).unflatten(0, slices.shape[:2])
        return out.movedim(1, self.axis)

    def forward(self, x: Tensor) -> Tensor:
        return self._each(self.op, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._each(self.op.H, y)

    @property
    def normal(self) -> LinearOperator:
        return SliceAxis(self.op.normal, self.axis)


class Subsample(LinearOperator):
    """Keeps the M entries where `mask` is true: `(B, *lead, *mask.shape)` to `(B, *lead, M)`; the adjoint fills zeros.

    Unlike a `Diagonal` mask it has no entries that were not measured, so every range entry is a datum.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.bool()
        self.index = self.mask.flatten().nonzero().squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(-self.mask.ndim).index_select(-1, self.index)

    def adjoint(self, y: Tensor) -> Tensor:
        grid = y.new_zeros((*y.shape[:-1], self.mask.numel()))
        out: Tensor = grid.index_copy(-1, self.index, y).unflatten(-1, self.mask.shape)
        return out

    @property
    def normal(self) -> LinearOperator:
        return Diagonal(self.mask)

    def svd(self) -> SVD:
        identity = Identity().forward
        return SVD(self.mask.to(torch.float32), identity, identity, self.forward, self.adjoint)


class Downsample(LinearOperator):
    """Every `stride`-th entry of the last axes, from the first. Low resolution is `Downsample(...) @ Convolve(...)`.

    Args:
        stride: one for each axis.
        shape: size of those axes before.
    """

    def __init__(self, stride: Sequence[int], shape: Sequence[int]) -> None:
        if len(stride) != len(shape) or min(stride) < 1:
            raise InputError(f"stride {tuple(stride)} does not fit axes {tuple(shape)}: one number >= 1 for each axis")
        self.shape = tuple(shape)
        self.keep: tuple[slice | EllipsisType, ...] = (..., *(slice(None, None, s) for s in stride))

    def forward(self, x: Tensor) -> Tensor:
        return x[self.keep]

    def adjoint(self, y: Tensor) -> Tensor:
        out = y.new_zeros((*y.shape[: y.ndim - len(self.shape)], *self.shape))
        out[self.keep] = y
        return out


class ToComplex(LinearOperator):
    """Real `(B, 2C, ...)`, first the C real parts, then the C imaginary parts, to complex `(B, C, ...)`. Unitary."""

    unitary = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(*x.chunk(2, 1))

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([y.real, y.imag], 1)


class CoilSensitivities(LinearOperator):
    """One complex image to what each receiver coil sees: `(B, 1, *spatial)` times maps to `(B, coils, *spatial)`.

    Args:
        maps: complex sensitivities, `(coils, *spatial)` or `(B, coils, *spatial)`.
        ndim: number of spatial axes.
    """

    domain_dtype = torch.complex64

    def __init__(self, maps: Tensor, *, ndim: int = 2) -> None:
        if maps.ndim not in (ndim + 1, ndim + 2):
            raise InputError(f"coil maps of shape {tuple(maps.shape)} do not have {ndim} spatial axes and a coil axis")
        self.maps = maps if maps.ndim == ndim + 2 else maps.unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps * x

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.maps.conj() * y).sum(1, keepdim=True)

    @property
    def normal(self) -> LinearOperator:
        return Diagonal(self.maps.abs().square().sum(1, keepdim=True))
