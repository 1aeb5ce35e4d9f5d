"""What of an estimated haze is taken off.

    taken = (certainty(h) h - threshold)+

Haze has a core that stands out; tissue that a network is unsure of seldom looks like one. So weak estimates count near strong ones
only (hysteresis, as in Canny's edges).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.ultrasound.context import context

REACH = 4
"""Points of the grid to either side over which a strong estimate vouches for weak ones."""


def certainty(haze: Tensor, certain: tuple[float, float]) -> Tensor:
    """0..1 for estimates `(T, rows, columns)`, grey 0..1.

    0 where nothing near reaches the first of these grey levels of 255, 1 where the second is reached; (0, 0) is certain of all.
    """
    low, high = certain
    if high <= 0:
        return torch.ones_like(haze)
    strongest = F.max_pool2d(haze[:, None], 2 * REACH + 1, 1, REACH)
    near = F.avg_pool2d(strongest, 2 * REACH + 1, 1, REACH, count_include_pad=False)[:, 0]
    return ((255 * near - low) / (high - low)).clamp(0, 1)


def taken(haze: Tensor, certain: tuple[float, float], threshold: float, window: int = 1) -> Tensor:
    """What of an estimate `(T, rows, columns)`, grey 0..1, is taken off; `threshold` in grey levels of 255.

    The certainty is averaged over `window` frames, lest what is taken comes and goes.
    """
    return (steady(certainty(haze, certain), window) * haze - threshold / 255).clamp_min(0)


def steady(values: Tensor, window: int) -> Tensor:
    """Values `(T, rows, columns)` averaged over `window` frames."""
    return context(values, window)[:, 1]
