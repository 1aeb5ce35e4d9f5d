"""Which lines to acquire next: active subsampling with posterior samples as particles.

Active diffusion subsampling (Nolan et al. 2025, TMLR): a line is worth what the particles disagree about on it. With
deviations d of the P particles at coil c and place y of a line, in units of the noise,

    w_l = ( sum_(c, y) sum_p |d_pcy|^2 / (2 (P - 1)) )^(1/2),

the length of the error expected on it. The entropy of its samples, `sum log(1 + |d|^2 / 2)`, which the paper takes, hardly
tells a line beside an acquired one, which the coils have nearly seen, from one far from any, because both lie far above the noise.

Several lines at once must not tell the same: the coils see some lines to either side of one that is taken, so the worth of those
shrinks by `1 - exp(-(distance / REACH)^2 / 2)`.

What error the lines would leave is told for the Gaussian that the P particles span: with `L_l` the deviations `(P, samples)`
of line l, `G_l = Re(L_l L_l^H) / (P - 1)`, it is `trace((1 + G_S)^-1 Z Z^H) / (P - 1)`, Z the deviations of the image. P - 1
directions are few, so this falls too fast with the lines proposed; for the lines acquired it needs no such model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from domains.mri.classical import classical
from domains.mri.pipeline import build_method, from_network, measurement_of, network_scale, supported, to_network
from domains.mri.problem import Problem
from suite.errors import InputError
from suite.noise import Noise
from suite.operators import FFT
from suite.prior import Prior

REACH = 2.0
"""Lines to either side that the coils see of one, as a standard deviation."""


@dataclass(frozen=True)
class Proposal:
    """What to acquire next.

    Attributes:
        axis: "kx" or "ky", what a line's number counts along.
        lines: numbers in the file's k-space, best first.
        worth: the error expected on each beside those before it, over the noise of a sample.
        expected_error: root mean square error over that of the image, as the particles expect it with none of the lines, with
            the first, ... `(len(lines) + 1,)`.
    """

    axis: str
    lines: list[int]
    worth: list[float]
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
    to_image, start = from_network(problem, scale), to_network(problem, scale, reference)
    solver = build_method("daps", {}, prior, start)
    found = []
    for number in range(count):
        noise = Noise.of(seed, [f"slice {k} particle {number}" for k in range(problem.slices)])
        u = solver.run(denoiser, measurement, torch.empty_like(start), noise=noise, steps=steps)
        found.append(supported(problem, to_image(u))[:, 0])
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
    information = line_information(problem, deviations, axis)
    worth = (information.diagonal(dim1=1, dim2=2).sum(1) / 2).sqrt()
    place = torch.arange(len(worth))
    worth = torch.where(open_lines.cpu(), worth, -1.0)
    flat = torch.view_as_real(deviations).flatten(1).double()
    energy = flat @ flat.T / (count - 1)
    mean = float(images.mean(0).abs().square().sum())
    precision = torch.eye(count, dtype=torch.float64)
    error = [math.sqrt(float(torch.trace(energy)) / mean)]
    lines, gains = [], []
    for _ in range(min(budget, int(open_lines.sum()))):
        best = int(worth.argmax())
        lines.append(best)
        gains.append(float(worth[best]))
        worth = worth * (1 - torch.exp(-(((place - best) / REACH) ** 2) / 2))
        worth[[*lines]] = -1.0
        precision = precision + information[best]
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
        total += (rows @ rows.mH).real.double().cpu()
    return total / (count - 1)
