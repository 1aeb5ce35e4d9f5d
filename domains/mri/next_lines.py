"""Which lines to acquire next: active subsampling with posterior samples as particles.

Active diffusion subsampling (Nolan et al. 2025, TMLR) takes the line on which the particles disagree most. Here that is made exact
for the Gaussian the particles span: with deviations `Z (P, pixels)` from their mean and `L_l` those of their line l, an image is
`mean + Z^T w / sqrt(P - 1)`, `w ~ N(0, 1)`, and noise is white with standard deviation 1, so that

    G_l = Re(L_l L_l^H) / (P - 1),        I(S) = log det(1 + sum_(l in S) G_l) / 2,

is what the lines S would tell about the image, in nats, and `trace((1 + G_S)^-1 Z Z^H) / (P - 1)` the variance they would leave.
Lines are taken one by one, each the best after those before it; I is submodular, so no set of as many tells more than 1.6 times
as much (Krause and Guestrin 2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from domains.mri.classical import classical
from domains.mri.pipeline import build_method, measurement_of, network_scale, supported
from domains.mri.problem import Problem
from suite.errors import InputError
from suite.linalg import expand
from suite.noise import Noise
from suite.operators import FFT, ToComplex
from suite.prior import Prior


@dataclass(frozen=True)
class Proposal:
    """What to acquire next.

    Attributes:
        axis: "kx" or "ky", what a line's number counts along.
        lines: numbers in the file's k-space, best first.
        information: what each adds to those before it, nats.
        expected_error: root mean square error over that of the image, as the particles expect it with none of the lines, with
            the first, ... `(len(lines) + 1,)`.
    """

    axis: str
    lines: list[int]
    information: list[float]
    expected_error: list[float]


def check_lines(problem: Problem) -> None:
    """Refuse a sampling that is not by lines.

    Raises:
        InputError: such a one.
    """
    if problem.fourier is not None or len(problem.axes) != 1:
        raise InputError(
            f"{problem.kspace.name}: is not sampled by whole lines along one axis, and next-lines chooses among such lines"
        )


def particles(
    problem: Problem, prior: Prior, count: int, steps: int, seed: int, told: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Posterior samples `(P, S, ny, nx)` of the whitened image, by `daps` with few steps.

    Args:
        count: P, at least 2.
        steps: network evaluations of each.
        told: called with the number of particles done.
    """
    reference = supported(problem, classical("sense", problem))
    scale = network_scale(reference)
    measurement = measurement_of(problem, scale)
    denoiser = prior.denoiser()
    to_complex, factor = ToComplex(), expand(scale, reference)
    start = to_complex.adjoint(reference / factor)
    solver = build_method("daps", {}, prior, start)
    found = []
    for number in range(count):
        noise = Noise.of(seed, [f"slice {k} particle {number}" for k in range(problem.slices)])
        u = solver.run(denoiser, measurement, torch.empty_like(start), noise=noise, steps=steps)
        found.append(supported(problem, to_complex(u) * factor)[:, 0])
        told(number + 1)
    return torch.stack(found)


def propose(problem: Problem, images: Tensor, budget: int) -> Proposal:
    """The next `budget` lines for all slices together (fewer where fewer are left).

    Args:
        images: particles `(P, S, ny, nx)`.

    Raises:
        InputError: as `check_lines`.
    """
    check_lines(problem)
    axis = problem.axes[0]
    count = len(images)
    deviations = (images - images.mean(0)).to(torch.complex64)
    open_lines = ~problem.mask.transpose(axis, -1).flatten(0, -2).any(0)
    information = line_information(problem, deviations, axis)[open_lines]
    numbers = open_lines.nonzero()[:, 0].tolist()
    flat = torch.view_as_real(deviations).flatten(1).double()
    energy = flat @ flat.T / (count - 1)
    mean = float(images.mean(0).abs().square().sum())
    precision = torch.eye(count, dtype=torch.float64)
    error = [math.sqrt(float(torch.trace(energy)) / mean)]
    lines, gains = [], []
    for _ in range(min(budget, len(numbers))):
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        gain = torch.linalg.slogdet(torch.eye(count, dtype=torch.float64) + root.T @ information @ root)[1] / 2
        best = int(gain.argmax())
        precision = precision + information[best]
        lines.append(numbers.pop(best))
        gains.append(float(gain[best]))
        information = torch.cat([information[:best], information[best + 1 :]])
        error.append(math.sqrt(float(torch.trace(torch.linalg.solve(precision, energy))) / mean))
    return Proposal("kx" if axis == -1 else "ky", lines, gains, error)


def line_information(problem: Problem, deviations: Tensor, axis: int) -> Tensor:
    """`G_l (lines, P, P)` in float64: every line along `axis`, summed over coils and slices."""
    count, lines = len(deviations), deviations.shape[axis]
    fft = FFT((axis,))
    total = torch.zeros((lines, count, count), dtype=torch.float64)
    for k in range(problem.slices):
        coils = fft(problem.maps[k] * deviations[:, k, None])  # (P, C, ny, nx)
        rows = coils.movedim(axis, 0).flatten(2)
        total += (rows @ rows.mH).real.double()
    return total / (count - 1)
