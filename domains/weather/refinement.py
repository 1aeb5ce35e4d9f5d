"""Refinement in the manner of PDE-Refiner (Lippe et al. 2023): a whole member first, then noise and denoising at falling levels.

The first member is drawn from the linear-Gaussian law. Each step adds noise of one level and draws again given the noisy field:
the denoiser's mean, and the spread that the linear-Gaussian law leaves at that level. For a Gaussian law every step is exact, so
that refinement changes nothing; the network brings in what is not Gaussian, from the largest scales to the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from domains.weather.denoiser import SIGMA_MIN, SeedDenoiser


def refined(denoiser: SeedDenoiser, start: Tensor, noises: Sequence[Tensor]) -> Tensor:
    """Residuals `(B, C, H, W)` from white noise `start`, by one evaluation for each pair of `noises`.

    Args:
        noises: an even number of white noises of the same shape.
    """
    law, mask = denoiser.given.predictive, denoiser.given.mask
    x = law.draw(start.flatten(1)).reshape(start.shape)
    high = float(law.values.max()) ** 0.5
    levels = torch.logspace(0, 1, len(noises) // 2, base=max(SIGMA_MIN * 4 / high, 1e-6)) * high
    for level, added, drawn in zip(levels.tolist(), noises[::2], noises[1::2], strict=True):
        t = denoiser.process.time_of_log_snr(-torch.tensor(level, dtype=torch.float64).log())
        mean = denoiser(x * mask + level * added, t)
        x = mean + law.left(level, drawn.flatten(1)).reshape(x.shape)
    return x * mask
