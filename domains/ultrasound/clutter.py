"""Clutter as it shows in a log-compressed picture: a near-field cone, reverberation bars and a diffuse veil.

After Tabassian et al. (arXiv 2401.13147): a bright cone below the transducer and oblique bars, nearly static, added to the
grey levels. On four simulated cines with such clutter its mean was 67 to 77 grey levels over 9 to 10 % of the sector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SectorGeometry:
    """Where the beams start, and how deep they reach, in pixels.

    Attributes:
        row, column: the middle of the transducer's face.
        depth: from there to the deepest row of the sector.
    """

    row: float
    column: float
    depth: float


def geometry(sector: Tensor) -> SectorGeometry:
    """The geometry of a mask `(rows, columns)`: its topmost pixels are the transducer. An empty mask counts as full."""
    mask = sector if bool(sector.any()) else torch.ones_like(sector)
    rows = mask.any(1).nonzero().flatten()
    top, bottom = int(rows[0]), int(rows[-1])
    columns = mask[top : top + 3].any(0).nonzero().flatten().double()
    return SectorGeometry(float(top), float(columns.mean()), float(max(bottom - top, 1)))


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def clutter(sector: Tensor, frames: int, rng: torch.Generator, level: float = 1.0) -> Tensor:
    """Grey levels to add, `(frames, rows, columns)`, 0 outside the sector.

    Args:
        sector: mask `(rows, columns)`.
        frames: length of the cine; the clutter drifts and flickers slowly over it.
        rng: decides place, size and brightness.
        level: multiplies the brightness; 1 is that of the published simulations (peaks of 100 to 250 grey levels).
    """
    where = geometry(sector)
    rows = torch.arange(sector.shape[0])[:, None] - where.row
    columns = torch.arange(sector.shape[1])[None, :] - where.column
    out = torch.zeros(frames, *sector.shape)
    kinds = torch.rand(3, generator=rng).tolist()
    if kinds[0] < 0.85:
        out += _cone(rows / where.depth, columns / where.depth, frames, rng)
    for _ in range(int(kinds[1] * 3.2) if kinds[0] < 0.85 else 1 + int(kinds[1] * 2)):
        out += _bar(rows / where.depth, columns / where.depth, frames, rng)
    if kinds[2] < 0.12:
        out += _veil(rows / where.depth + 0 * columns, frames, rng)
    return level * out * sector


def _pulse(frames: int, rng: torch.Generator, share: float) -> Tensor:
    """A slow oscillation of this amplitude, `(frames, 1, 1)`: the heart's and the breath's."""
    rate, phase = uniform(rng, 0.01, 0.07), uniform(rng, 0, 1)
    return share * torch.sin(2 * math.pi * (rate * torch.arange(frames) + phase))[:, None, None]


def _cone(down: Tensor, side: Tensor, frames: int, rng: torch.Generator) -> Tensor:
    tilt, width = uniform(rng, -0.15, 0.15), uniform(rng, 0.05, 0.14)
    reach, power = uniform(rng, 0.15, 0.5), uniform(rng, 1.0, 3.0)
    across = (side - tilt * down) / (width + uniform(rng, -0.05, 0.2) * down.clamp_min(0)).clamp_min(0.02)
    shape = torch.exp(-(across**2) / 2 - (down.clamp_min(0) / reach) ** power)
    return uniform(rng, 90, 240) * shape * (1 + _pulse(frames, rng, uniform(rng, 0, 0.08)))


def _bar(down: Tensor, side: Tensor, frames: int, rng: torch.Generator) -> Tensor:
    angle, reach = uniform(rng, -0.75, 0.75), uniform(rng, 0.15, 0.8)
    turn = angle + uniform(rng, -0.4, 0.4)  # the beam at that angle is met at nearly a right angle
    length, thickness = uniform(rng, 0.05, 0.16), uniform(rng, 0.015, 0.05)
    drift = _pulse(frames, rng, uniform(rng, 0, 0.025))
    along, beyond = side - reach * math.sin(angle), down - reach * math.cos(angle)
    u = along * math.cos(turn) - beyond * math.sin(turn)
    v = along * math.sin(turn) + beyond * math.cos(turn) + drift
    shape = torch.exp(-((u / length) ** 2 + (v / thickness) ** 2) / 2)
    return uniform(rng, 70, 220) * shape * (1 + _pulse(frames, rng, uniform(rng, 0, 0.1)))


def _veil(down: Tensor, frames: int, rng: torch.Generator) -> Tensor:
    field = torch.rand((1, 1, 5, 5), generator=rng)
    smooth = F.interpolate(field, tuple(down.shape), mode="bicubic", align_corners=True)[0].clamp_min(0)
    fall = torch.exp(-down.clamp_min(0) / uniform(rng, 0.2, 1.0))
    return uniform(rng, 15, 60) * smooth * fall * (1 + _pulse(frames, rng, 0.05))
