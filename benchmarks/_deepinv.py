"""deepinv's samplers on this suite's problems: the same measurement and the same denoiser, in the range they expect.

deepinv's DPS, DiffPIR and DDRM take images in [0, 1]: DiffPIR clamps its estimates there and DDRM starts at noise of
standard deviation 1. So a network value u becomes `v = (u - low) / width`, and the measurement `y = A u + n` of norm |A| the
measurement `(y - A low) / (width |A|)` of v. Every setting that is not named here is deepinv's default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suite.operators import LinearOperator

_LIBRARIES: list[Any] = []  # a torch library lives as long as its object


def _declare_torchvision_operators() -> None:
    """deepinv imports torchvision, whose wheels for another build of torch lack these two operators."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)


_declare_torchvision_operators()

from deepinv.models import Denoiser  # noqa: E402
from deepinv.optim.data_fidelity import L2  # noqa: E402
from deepinv.physics import DecomposablePhysics, GaussianNoise, LinearPhysics  # noqa: E402
from deepinv.sampling import (  # noqa: E402
    DDRM,
    DPS,
    DDPMSolver,
    DiffPIR,
    MomentMatchingDataFidelity,
    PiGDMDataFidelity,
    PosteriorDiffusion,
    VariancePreservingDiffusion,
)

Denoise = Callable[
    [Tensor, Tensor], Tensor
]  # `E[u | u + sigma eps]` of values `(B, C, ny, nx)` and sigma `(B, 1, 1, 1)`


@dataclass(frozen=True)
class Range:
    """Network values `low + width v` for deepinv's v."""

    low: float
    width: float


class SharedDenoiser(Denoiser):
    """A denoiser of network values as a deepinv denoiser of v.

    Attributes:
        evaluations: calls so far.
    """

    def __init__(self, denoise: Denoise, span: Range) -> None:
        super().__init__()
        self.denoise, self.span, self.evaluations = denoise, span, 0

    def forward(self, x: Tensor, sigma: float | Tensor, **_: Any) -> Tensor:
        self.evaluations += 1
        level = self._handle_sigma(sigma, reference_tensor=x)
        level = level.reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape[0], *[1] * (x.ndim - 1))
        u = self.denoise(self.span.low + self.span.width * x, self.span.width * level)
        return (u - self.span.low) / self.span.width


class OperatorPhysics(LinearPhysics):
    """An operator of the suite over its norm; `sigma` is the noise of the data it is given."""

    def __init__(self, operator: LinearOperator, norm: float, sigma: float, **options: Any) -> None:
        super().__init__(noise_model=GaussianNoise(sigma), **options)
        self.operator, self.norm = operator, norm

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return self.operator(x) / self.norm

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        return self.operator.adjoint(y) / self.norm


def decomposed(matrix: Tensor, shape: tuple[int, ...], sigma: float) -> DecomposablePhysics:
    """A small dense operator `(m, n)` on items of `shape`, by its singular value decomposition; data are `(B, m)`."""
    left, values, vh = torch.linalg.svd(matrix.double(), full_matrices=True)
    rank, size = len(values), matrix.shape[1]
    u = torch.zeros(matrix.shape[0], size)
    u[:, :rank], s = left[:, :rank].float(), torch.zeros(size)
    s[:rank], vh = values.float(), vh.float()
    return DecomposablePhysics(
        U=lambda c: c.flatten(1).to(u.dtype) @ u.T,
        U_adjoint=lambda y: (y.to(u.dtype) @ u).unflatten(1, shape),
        V=lambda c: (c.flatten(1).to(u.dtype) @ vh).unflatten(1, shape),
        V_adjoint=lambda x: (x.flatten(1).to(u.dtype) @ vh.T).unflatten(1, shape),
        mask=s.reshape(1, *shape),
        noise_model=GaussianNoise(sigma),
    )


# --- samplers: `build(denoiser, steps)` to something called as `(y, physics)` ------------------------------------------------


def ddrm(denoiser: Denoiser, steps: int) -> Callable[..., Tensor]:
    return DDRM(denoiser, sigmas=np.linspace(1, 0, steps))


def diffpir(denoiser: Denoiser, steps: int, **options: float) -> Callable[..., Tensor]:
    return DiffPIR(denoiser, L2(), max_iter=steps, **options)


def dps(denoiser: Denoiser, steps: int, **options: Any) -> Callable[..., Tensor]:
    return _started(DPS(denoiser, num_steps=steps, rng=torch.Generator().manual_seed(0), **options))


def posterior(fidelity: Callable[[], Any]) -> Callable[[Denoiser, int], Callable[..., Tensor]]:
    """deepinv's reverse-time process with another model of the likelihood, on network values as they are."""

    def build(denoiser: Denoiser, steps: int) -> Callable[..., Tensor]:
        times = torch.linspace(1, 0, steps, dtype=torch.float64)
        solver = DDPMSolver(timesteps=times, rng=torch.Generator().manual_seed(0))
        sde = VariancePreservingDiffusion()
        return _started(PosteriorDiffusion(fidelity(), denoiser, sde, solver, minus_one_one=False))

    return build


def _started(model: PosteriorDiffusion) -> Callable[..., Tensor]:
    """The model told the images' shape, which it would otherwise find by a pseudo-inverse."""
    return lambda y, physics: model(y, physics, x_init=tuple(physics.A_adjoint(y).shape))


pigdm, moment_matching = posterior(PiGDMDataFidelity), posterior(MomentMatchingDataFidelity)
