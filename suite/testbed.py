"""Problems whose posteriors are known in closed form: the ground every posterior method is graded on (`suite.verify`).

A problem is a prior (white Gaussian, correlated Gaussian, Gaussian mixture; data of mean square about 1), a process, an
operator and a noise level. Where the process is anchored, the prior is a law of x0 given the anchor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from suite.gaussian import DenseGaussian, Gaussian, GaussianMixture, dense_matrix
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import (
    FFT,
    CoilSensitivities,
    Compose,
    Convolve,
    Identity,
    LinearOperator,
    Matrix,
    Subsample,
    ToComplex,
    gaussian_kernel,
)
from suite.process import PROCESSES, Process

SIDE = 4  # items are SIDE x SIDE pixels
Law = Gaussian | GaussianMixture


# --- operators: `(B, C, SIDE, SIDE)` to whatever ------------------------------------------------------------------------


def mask(channels: int = 1) -> LinearOperator:
    """Every second pixel, irregularly: 9 of 16."""
    keep = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    return Subsample(keep)


def blur(channels: int = 1) -> LinearOperator:
    """Periodic Gaussian blur of 0.7 pixels: singular values from 1 to 0.05."""
    return Convolve(gaussian_kernel(0.7, 2), (SIDE, SIDE))


def radon(channels: int = 1) -> LinearOperator:
    """Line integrals along 3 directions, 6 bins each, linear interpolation between bins: norm about 4, a null space."""
    grid = torch.arange(SIDE) - (SIDE - 1) / 2
    y, x = (g.flatten() for g in torch.meshgrid(grid, grid, indexing="ij"))
    rows = []
    for angle in (0.0, math.pi / 3, 2 * math.pi / 3):
        place = x * math.cos(angle) + y * math.sin(angle)
        rows += [(1 - (place - b).abs()).clamp_min(0) for b in torch.arange(6) - 2.5]
    return Matrix(torch.stack(rows), (1, SIDE, SIDE))


def mri(channels: int = 2) -> LinearOperator:
    """Two coils, every second line of k-space and the centre: complex data of a two-channel real image."""
    grid = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    maps = torch.stack([torch.exp(-((x - a) ** 2) + 1j * a * y) for a in (-0.8, 0.8)])
    maps = maps / maps.abs().square().sum(0).sqrt()
    lines = torch.tensor([True, False, True, False])[:, None].expand(SIDE, SIDE)
    return Compose(Subsample(lines), FFT((-2, -1)), CoilSensitivities(maps), ToComplex())


OPERATORS: dict[str, Callable[..., LinearOperator]] = {"mask": mask, "blur": blur, "ct": radon, "mri": mri}


# --- priors -------------------------------------------------------------------------------------------------------------


def prior(kind: str, channels: int = 1, anchored: bool = False) -> Law:
    """The law of x0 (given the anchor y, when anchored: the mean then moves with half of it).

    `white` N(m, 1); `correlated` with exponential correlation over 2 pixels (eigenvalues from 6 to 0.2); `mixture` of three
    white Gaussians of standard deviation 0.8 whose means lie some 4 of these apart, with weights 0.5, 0.3, 0.2.
    """
    shape = (channels, SIDE, SIDE)
    size = channels * SIDE * SIDE
    ramp = torch.linspace(-1, 1, size, dtype=torch.float64).reshape(shape).float()

    def mean(pattern: Tensor) -> Tensor | Callable[[Tensor], Tensor]:
        return (lambda y: pattern + 0.5 * y) if anchored else pattern

    if kind == "white":
        return Gaussian(mean(0.5 * ramp), torch.ones(shape), shape=shape)
    if kind == "correlated":
        return DenseGaussian(mean(0.5 * ramp), _exponential(channels).float(), shape=shape)
    phase = torch.arange(size, dtype=torch.float32).reshape(shape)
    patterns = [torch.cos(0.9 * phase), torch.cos(0.9 * phase + 2.1), torch.cos(0.9 * phase + 4.2)]
    components = [Gaussian(mean(0.8 * p), torch.full(shape, 0.64), shape=shape) for p in patterns]
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), components)


def _exponential(channels: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    place = torch.stack([y.flatten(), x.flatten()], 1).double()
    return torch.block_diag(*[torch.exp(-torch.cdist(place, place) / 2)] * channels)


# --- problems -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One row's setting.

    Attributes:
        kind: "white", "correlated" or "mixture".
        operator: key of `OPERATORS`, or "none" (no measurement).
        process: key of `PROCESSES`.
        noise: standard deviation of the noise over the operator's norm.
        truths: how many truths, each with its own measurement (and anchor).
    """

    kind: str
    operator: str
    process: str
    noise: float = 0.0
    truths: int = 16

    @cached_property
    def dynamics(self) -> Process:
        return PROCESSES[self.process]()

    @property
    def channels(self) -> int:
        return 2 if self.operator == "mri" else 1

    @cached_property
    def law(self) -> Law:
        return prior(self.kind, self.channels, self.dynamics.anchored)

    @cached_property
    def anchors(self) -> Tensor | None:
        """`(truths, *shape)` where the process is anchored."""
        if not self.dynamics.anchored:
            return None
        return Noise.of(0, ["anchor"]).normal(torch.empty(self.truths, *self.law.shape))

    def anchor(self, i: int) -> Tensor | None:
        return None if self.anchors is None else self.anchors[i : i + 1]

    def anchor_for(self, samples: int) -> Tensor | None:
        """The anchors, each repeated for so many samples."""
        return None if self.anchors is None else self.anchors.repeat_interleave(samples, 0)

    @cached_property
    def linear(self) -> LinearOperator:
        return Identity() if self.operator == "none" else OPERATORS[self.operator](self.channels)

    @cached_property
    def matrix(self) -> Tensor:
        return dense_matrix(self.linear, self.law.shape)

    @cached_property
    def sigma(self) -> float:
        """Standard deviation of the noise, of each real and imaginary part."""
        return self.noise * float(torch.linalg.matrix_norm(self.matrix, 2))

    @cached_property
    def data(self) -> Tensor:
        """`A x + n` for truths x from the prior, `(truths, *range)`."""
        noise = Noise.of(0, ["truth"])
        truths = [self.law.sample(1, noise, self.anchor(i)) for i in range(self.truths)]
        clean = self.linear(torch.cat(truths))
        return clean + self.sigma * noise.normal(clean)

    def measurement(self, samples: int) -> Measurement:
        """The measurements, each repeated for so many samples."""
        return Measurement(self.linear, self.data.repeat_interleave(samples, 0), self.sigma)

    @cached_property
    def posteriors(self) -> list[Law]:
        """The exact law of x0 for each truth's measurement (and anchor)."""
        if self.operator == "none":
            return [_pinned(self.law, self.anchor(i)) for i in range(self.truths)]
        return [self.law.condition(self.matrix, self.data[i], self.sigma, self.anchor(i)) for i in range(self.truths)]


def _pinned(law: Law, y: Tensor | None) -> Law:
    """The law with its mean evaluated at the anchor."""
    if isinstance(law, GaussianMixture):
        return GaussianMixture(law.weights, [_pinned(c, y) for c in law.components])  # type: ignore[misc]
    return law._with(law.mean_of(y)[0], law.variance)
