"""The CT forward operator: line integrals of a stack of slices, and its exact transpose."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from domains.ct.compiled import CompiledProjector
from domains.ct.geometry import Geometry, parallel
from domains.ct.rays import Rays, trace
from domains.ct.sparse import SparseProjector
from domains.ct.symmetry import LANES
from suite.errors import InputError
from suite.operators import LinearOperator

Backend = Literal["auto", "compiled", "torch"]


class Projector(LinearOperator):
    """Line integrals `y = A x` of images `x` in 1/mm: `(B, C, ny, nx)` to `(B, C, V, K)`, dimensionless.

    Joseph's method for parallel and fan beam; the adjoint is the exact transpose. Differentiable: inside an autograd
    graph the backward pass is the adjoint (and the other way round), to any order.

    Args:
        geometry: the scan.
        backend: "compiled" (CPU, no stored matrix), "torch" (sparse matrices, any device), or "auto": compiled for
            tensors on the CPU, torch elsewhere.
        memory_mb: budget for the matrices that the torch path keeps; what exceeds it is made anew in every call.

    Raises:
        InputError: when a tensor does not fit the geometry, or is not float32 or float64.
    """

    def __init__(self, geometry: Geometry, *, backend: Backend = "auto", memory_mb: float = 4096) -> None:
        self.geometry = geometry
        self.backend = backend
        self.memory_mb = memory_mb
        self.domain_shape = (1, *geometry.image_shape)
        self.range_shape = (1, *geometry.sinogram_shape)

    @cached_property
    def rays(self) -> tuple[Rays, Rays]:
        return trace(self.geometry)

    @cached_property
    def _compiled(self) -> CompiledProjector:
        return CompiledProjector(self.geometry, self.rays)

    @cached_property
    def _sparse(self) -> SparseProjector:
        return SparseProjector(self.geometry, self.rays, self.memory_mb)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply(x, False)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(y, True)

    def _apply(self, v: Tensor, transpose: bool) -> Tensor:
        given = "sinogram" if transpose else "image"
        wanted = self.geometry.sinogram_shape if transpose else self.geometry.image_shape
        if v.ndim != 4 or tuple(v.shape[2:]) != wanted:
            raise InputError(f"the {given} has shape {tuple(v.shape)}; the geometry needs (B, C, *{wanted})")
        if v.dtype not in (torch.float32, torch.float64):
            raise InputError(f"the {given} is {v.dtype}; the projector takes float32 or float64")
        if not v.requires_grad and forward_ad.unpack_dual(v).tangent is None:
            return self._compute(v, transpose)  # autograd's own bookkeeping costs as much as a small scan
        result: Tensor = _Apply.apply(v, self, transpose)
        return result

    def _compute(self, v: Tensor, transpose: bool) -> Tensor:
        compiled = v.device.type == "cpu" if self.backend == "auto" else self.backend == "compiled"
        path = self._compiled if compiled else self._sparse
        slices = v.detach().flatten(0, 1)
        out = path.adjoint(slices) if transpose else path.forward(slices)
        return out.reshape(*v.shape[:2], *out.shape[1:])


class _Apply(torch.autograd.Function):
    """`A v`, or `A^T v` when `transpose`; its derivative is the other one."""

    @staticmethod
    def forward(v: Tensor, projector: Projector, transpose: bool) -> Tensor:
        return projector._compute(v, transpose)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.projector, ctx.transpose = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Apply.apply(gradient, ctx.projector, not ctx.transpose), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        result: Tensor = _Apply.apply(tangent, ctx.projector, ctx.transpose)
        return result


def load_kernels() -> None:
    """Load the compiled code (on a machine's first call: compile it), so that no run's clock counts it, as with imports."""
    for shape in ((4, 4), (4, 3)):  # mirror images, and slices alone
        project = Projector(parallel([0.0, 90.0], shape))
        for slices in (1, LANES):
            project.adjoint(project(torch.zeros(slices, 1, *shape)))
