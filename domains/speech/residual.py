"""The residual of the posterior mode where hearing and the prior have theirs: in the compressed short-time Fourier transform.

    |C(X) - C(Y)|^2,     C(X) = X (|X|^2 + floor^2)^((a - 1) / 2),     a = 2/3

with Y of the recording and X of what the estimate of the speech would have been recorded as (after BUDDy, Moliner et al. 2024). A
residual of samples sees little but the loudest sounds; the compression lets the soft ones count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suite.measurement import Measurement
from suite.posterior.unit_steps import UnitSteps

EXPONENT = 2 / 3
FLOOR = 0.01
"""Magnitude, at unit level, below which nothing is amplified: some 60 dB under speech."""


def compressed(spectra: Tensor) -> Tensor:
    """C of spectra `(B, bins, frames)` complex: real, `(B, bins, frames, 2)`, differentiable everywhere."""
    parts = torch.view_as_real(spectra)
    return parts * (parts.square().sum(-1, keepdim=True) + FLOOR**2) ** ((EXPONENT - 1) / 2)


def compressed_measurement(view: Callable[[Tensor], Tensor], spectra: Tensor) -> Measurement:
    """The recording `(B, bins, frames)` in the compressed transform.

    Args:
        view: a state to the spectra that it would have been recorded as; any differentiable function, whose parameters may change.
    """
    return Measurement(lambda state: compressed(view(state)), compressed(spectra), 1.0, linear=False)


class SpectrumSteps(UnitSteps):
    """Normalised steps down the residual above, between noise levels that the prior of speech knows.

    Args:
        levels: first and last, over the prior's standard deviation.
        options: of `UnitSteps`.
    """

    def __init__(self, levels: tuple[float, float] = (8.0, 0.1), **options: Any) -> None:
        super().__init__(**options)
        self.levels = levels  # type: ignore[misc]
