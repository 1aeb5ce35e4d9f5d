"""Log compression, companding and envelopes: the maps between a picture and the domain where tissue and haze add."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import hilbert
from torch import Tensor

MU = 255.0
DYNAMIC_RANGE_DB = 60.0

A = TypeVar("A", NDArray[Any], Tensor)


def decompress(grey: A, dynamic_range_db: float = DYNAMIC_RANGE_DB) -> A:
    """Envelope in 0..1 from grey in 0..1: `10^(D (g - 1) / 20)`, brought to 0 at black.

    Log compression shows `g = 1 + 20 log10(e) / D`, cut off at 0. All of `e <= 10^(-D/20)` is black, so the envelope of
    black is unknown; with `(10^(D g / 20) - 1) / (10^(D/20) - 1)` it is 0, the map is one to one, and a bright pixel changes
    by less than `10^(-D/20)`.
    """
    rate = dynamic_range_db / 20 * math.log(10)
    return (torch.expm1(rate * grey) if isinstance(grey, Tensor) else np.expm1(rate * grey)) / math.expm1(rate)


def compress(envelope: A, dynamic_range_db: float = DYNAMIC_RANGE_DB) -> A:
    """Inverse of `decompress`: grey in 0..1."""
    rate = dynamic_range_db / 20 * math.log(10)
    scaled = envelope * math.expm1(rate)
    return (torch.log1p(scaled) if isinstance(scaled, Tensor) else np.log1p(scaled)) / rate


def compand(v: Tensor, mu: float = MU) -> Tensor:
    """`sgn(v) ln(1 + mu |v|) / ln(1 + mu)` (Stevens et al. 2024, eq. 10)."""
    return torch.sgn(v) * torch.log1p(mu * v.abs()) / math.log1p(mu)


def expand_companded(c: Tensor, mu: float = MU) -> Tensor:
    """`sgn(c) ((1 + mu)^|c| - 1) / mu`, the inverse of `compand`."""
    return torch.sgn(c) * torch.expm1(c.abs() * math.log1p(mu)) / mu


def envelope(data: NDArray[Any], domain: str, axis: int = -2) -> NDArray[np.float32]:
    """The envelope of RF (analytic signal along `axis`, the axial one) or IQ (magnitude)."""
    if domain == "rf":
        return np.abs(hilbert(data.astype(np.float32), axis=axis)).astype(np.float32)
    return np.abs(data).astype(np.float32)
