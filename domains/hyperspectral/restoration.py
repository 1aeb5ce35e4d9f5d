"""Eigen-images seen through an operator or with holes: completion and super-resolution in the subspace.

An operator that treats all bands alike commutes with the spectra, so `z_hat = H z + n` for every eigen-image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from domains.hyperspectral.hir_diff import other_images
from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import LinearOperator, Separable
from suite.posterior.ddrm import DDRM

STEPS = 20


def restore_images(
    network: Denoiser,
    images: Tensor,
    noise: Tensor,
    operator: LinearOperator,
    seen: Tensor,
    start: Tensor,
    guides: int,
    *,
    draw: Noise,
    steps: int = STEPS,
) -> Tensor:
    """DDRM with the prior of eigen-images on each image, `(R, rows, columns)`; a point estimate.

    Args:
        images, noise, operator, seen, start: as `hir_diff` takes them.
    """
    centre, total = start.mean((1, 2)), start.var((1, 2))
    scale = (total - noise.square()).clamp_min(0.05 * total).sqrt()
    others = other_images((start - centre[:, None, None]) / total.sqrt()[:, None, None], guides)
    found = torch.empty_like(start)
    for k in range(len(images)):
        level = float(noise[k] / scale[k])
        u = ((start[k] - centre[k]) / scale[k])[None, None]
        y = ((images[k] - centre[k]) / scale[k])[None, None]
        std: float | Tensor = level if bool(seen.all()) else torch.where(seen, level, math.inf)[None, None]
        first = max(1.0, 1.5 * level)
        time = float(network.process.time_of_log_snr(torch.tensor(-math.log(first), dtype=torch.float64)))
        method = DDRM(start=time, finest=max(0.02, min(0.3 * level, 0.3)), init=u)
        out = method.run(network, Measurement(operator, y, std), u, noise=draw, steps=steps, y=others[k : k + 1])
        found[k] = out[0, 0] * scale[k] + centre[k]
    return found


def cubic_reduction(size: int, factor: int) -> Tensor:
    """`(size / factor, size)`: cubic interpolation (Keys 1981, a = -1/2) stretched by the factor, rows of sum 1.

    Beyond the edges the signal is mirrored. What MATLAB's `imresize` does, and the benchmark of super-resolution with it.
    """
    if size % factor:
        raise InputError(f"a side of {size} pixels cannot be reduced by {factor}; it must divide evenly")
    rows = torch.arange(size // factor, dtype=torch.float64)
    centre = (rows + 0.5) * factor - 0.5
    taps = torch.arange(-2 * factor, 2 * factor + 1, dtype=torch.float64)
    at = centre.floor()[:, None] + taps
    d = ((at - centre[:, None]) / factor).abs()
    weight = torch.where(d <= 1, 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2) * (d < 2)
    weight = weight / weight.sum(1, keepdim=True)
    period = at.long() % (2 * size)
    index = torch.where(period < size, period, 2 * size - 1 - period)
    out = torch.zeros(size // factor, size, dtype=torch.float64).scatter_add_(1, index, weight)
    return out.float()


def reduction(size: tuple[int, int], factor: int) -> Separable:
    """From `(rows, columns)` to a resolution lower by `factor` in both directions.

    Raises:
        InputError: a side that the factor does not divide.
    """
    return Separable(cubic_reduction(size[0], factor), cubic_reduction(size[1], factor))
