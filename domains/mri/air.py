"""The noise of a scan without a noise scan, from the air around the object; serves single coils, which have no null space.

Where the sampling leaves an axis whole, the image along it is known line by line, and lines through air hold nothing but
noise. Where it leaves none, the fully sampled centre of k-space gives a picture of low resolution, whose window keeps the object
from leaking into the air. Air is told by its energy: the lowest places agree with each other as noise does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.mri.coils import calibration_box
from domains.mri.noise import covariance_of
from domains.mri.physics import transformed_axes
from suite.operators import FFT

WIDEST = 32
TAPER = 6.0
WINDOW = 5


def air_covariance(data: Tensor, mask: Tensor) -> Tensor | None:
    """Covariance `(C, C)`, `E[n n^H] / 2`, of k-space `(S, C, ny, nx)`; None where no air shows."""
    axes = transformed_axes(mask)
    samples = _whole_lines(data, mask, axes[0]) if len(axes) == 1 else _corners(data, mask)
    return None if samples is None or samples.shape[1] < 16 * data.shape[1] else covariance_of(samples)


def _whole_lines(data: Tensor, mask: Tensor, axis: int) -> Tensor | None:
    """Samples `(C, n)` on the lines through air; `axis` is the undersampled one."""
    found = []
    for slice_, sampled in zip(data, mask[:, 0], strict=True):
        across = slice_ if axis == -1 else slice_.mT
        columns = sampled.any(0) if axis == -1 else sampled.any(1)
        lines = FFT((-2,)).adjoint(across[None])[0][..., columns]  # (C, line, sample)
        air = _floor(lines.abs().square().mean((0, 2)), lines.shape[0] * lines.shape[2], 4.0)
        if air is not None:
            found.append(lines[:, air].flatten(1))
    return torch.cat(found, 1) if found else None


def _corners(data: Tensor, mask: Tensor) -> Tensor | None:
    """Pixels `(C, n)` of the low-resolution picture that show air, scaled to the noise of a sample."""
    found = []
    for slice_, sampled in zip(data, mask[:, 0], strict=True):
        box = calibration_box(sampled, WIDEST)
        centre = slice_[..., box[0], box[1]]
        if min(centre.shape[-2:]) < 2 * WINDOW:
            continue
        window = torch.outer(*(torch.kaiser_window(n, False, TAPER) for n in centre.shape[-2:])).to(data.device)
        picture = FFT().adjoint((centre * window)[None])[0] / window.square().mean().sqrt()
        energy = F.pad(picture.abs().square().mean(0)[None, None], (WINDOW // 2,) * 4, mode="circular")
        air = _floor(F.avg_pool2d(energy, WINDOW, 1).flatten(), WINDOW**2 * len(slice_) // 2, 2.5)
        if air is not None:
            found.append(picture.flatten(1)[:, air])
    return torch.cat(found, 1) if found else None


def _floor(energy: Tensor, samples: int, width: float) -> Tensor | None:
    """Which places hold only noise: the lowest, and all within `width` standard deviations of their mean; None where the lowest
    do not agree with others.

    Args:
        energy: mean energy of each place.
        samples: complex samples behind each; noise varies by 1 / sqrt(samples).
    """
    least = max(4, len(energy) // 50)
    level, rising = energy.sort().values, least
    for _ in range(50):
        bound = level[:rising].mean() * (1 + width / math.sqrt(samples))
        count = max(least, int((level < bound).sum()))
        if count == rising:
            break
        rising = count
    return energy <= level[rising - 1] if rising > least else None
