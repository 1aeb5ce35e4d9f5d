"""Haze of many shapes on pictures of a fan, for training: what differs between probes, patients and simulators is drawn anew.

Shapes lie in the polar coordinates of the transducer: cones below it at any tilt, arcs of reverberation at multiples of a depth,
veils along an edge of the sector, smooth fields, and echoes of longer paths (delayed, attenuated, smeared copies of the tissue).
They are laid over the picture in one of the ways they meet in the field: as grey levels, envelopes, or echoes of random phase.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.ultrasound.clutter import SectorGeometry, clutter, geometry, uniform
from domains.ultrasound.physics import compress, decompress

SHARES = {"clutter": 0.35, "shapes": 0.4, "multipath": 0.25}
"""How often each kind of haze is drawn: the published shapes, the wider ones, echoes of longer paths."""


def hazed(tissue: Tensor, sector: Tensor, rng: torch.Generator) -> Tensor:
    """Grey values 0..1 `(w, rows, columns)` with haze of a random kind, 0 outside the sector, nowhere below the tissue."""
    draw = uniform(rng, 0, 1)
    if draw < SHARES["clutter"]:
        haze = clutter(sector, len(tissue), rng, uniform(rng, 0.3, 1.2)) / 255
        return (tissue + haze).clamp(0, 1)
    if draw < SHARES["clutter"] + SHARES["shapes"]:
        return laid_over(tissue, shapes(sector, len(tissue), rng), rng)
    return torch.maximum(tissue, multipath_picture(tissue, sector, rng) * sector)


def laid_over(tissue: Tensor, haze: Tensor, rng: torch.Generator) -> Tensor:
    """Haze on tissue, both grey 0..1: added as grey levels (as published simulations do), or as envelopes."""
    if uniform(rng, 0, 1) < 0.6:
        return (tissue + haze).clamp(0, 1)
    db = uniform(rng, 40, 70)
    return compress(decompress(tissue, db) + decompress(haze.clamp(0, 1), db), db).clamp(0, 1)


def shapes(sector: Tensor, frames: int, rng: torch.Generator) -> Tensor:
    """One to three shapes, grey 0..1 `(frames, rows, columns)`, 0 outside the sector."""
    where = geometry(sector)
    shifted = SectorGeometry(where.row, where.column + uniform(rng, -0.1, 0.1) * where.depth, where.depth)
    radius, angle = polar(shifted, sector.shape)
    half = float(angle[sector].abs().quantile(0.98)) if bool(sector.any()) else 0.7
    out = torch.zeros(frames, *sector.shape)
    for _ in range(1 + int(uniform(rng, 0, 2.5))):
        kind = int(uniform(rng, 0, 4))
        draw = (_cone, _arcs, _edge, _field)[kind]
        out += draw(radius, angle, half, rng) * _beat(frames, rng)
    if uniform(rng, 0, 1) < 0.5:
        out *= 1 + uniform(rng, 0.1, 0.5) * smooth_field(sector.shape, int(uniform(rng, 8, 32)), rng)
    return (uniform(rng, 0.4, 1.1) * out).clamp(0, 1) * sector


def polar(where: SectorGeometry, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Distance from the transducer in depths of the sector, and angle from the vertical, `(rows, columns)`."""
    down = (torch.arange(shape[0])[:, None] - where.row) / where.depth
    side = (torch.arange(shape[1])[None, :] - where.column) / where.depth
    return torch.hypot(down.expand(*shape), side.expand(*shape)), torch.atan2(side, down.clamp_min(1e-3))


def smooth_field(shape: torch.Size, cells: int, rng: torch.Generator) -> Tensor:
    """A random field of zero mean and about unit size, smooth over `1 / cells` of the picture."""
    coarse = torch.randn((1, 1, cells, cells), generator=rng)
    return F.interpolate(coarse, tuple(shape), mode="bicubic", align_corners=True)[0, 0]


def _beat(frames: int, rng: torch.Generator) -> Tensor:
    """Brightness over time `(frames, 1, 1)`, about 1: still, or moving a little with heart and breath."""
    share = 0.0 if uniform(rng, 0, 1) < 0.3 else uniform(rng, 0, 0.2)
    rate, phase = uniform(rng, 0.005, 0.1), uniform(rng, 0, 1)
    return 1 + share * torch.sin(2 * math.pi * (rate * torch.arange(frames) + phase))[:, None, None]


def _cone(radius: Tensor, angle: Tensor, half: float, rng: torch.Generator) -> Tensor:
    tilt, width = uniform(rng, -0.8, 0.8) * half, uniform(rng, 0.08, 0.6)
    reach, power = uniform(rng, 0.08, 0.7), uniform(rng, 0.8, 4.0)
    return uniform(rng, 0.15, 1) * torch.exp(-(((angle - tilt) / width) ** 2) / 2 - (radius / reach) ** power)


def _arcs(radius: Tensor, angle: Tensor, half: float, rng: torch.Generator) -> Tensor:
    """Reverberation: arcs, or slanted bars, at multiples of a depth, each weaker than the one before."""
    middle, width = uniform(rng, -0.9, 0.9) * half, uniform(rng, 0.05, 0.5)
    step, thick = uniform(rng, 0.08, 0.6), uniform(rng, 0.012, 0.06)
    loss, slant = uniform(rng, 0.5, 0.95), uniform(rng, -0.8, 0.8)
    along = radius + slant * (angle - middle) * step
    out = torch.zeros_like(radius)
    for k in range(1, 1 + int(uniform(rng, 1, 5))):
        out += loss ** (k - 1) * torch.exp(-(((along - k * step) / thick) ** 2) / 2)
    return uniform(rng, 0.2, 0.9) * out * torch.exp(-(((angle - middle) / width) ** 2) / 2)


def _edge(radius: Tensor, angle: Tensor, half: float, rng: torch.Generator) -> Tensor:
    """Side haze: along one edge of the sector, between two depths."""
    side = 1.0 if uniform(rng, 0, 1) < 0.5 else -1.0
    near = torch.exp(-(((half - side * angle) / uniform(rng, 0.05, 0.4)) ** 2) / 2)
    deep = torch.exp(-(((radius - uniform(rng, 0.1, 0.9)) / uniform(rng, 0.1, 0.5)) ** 2) / 2)
    return uniform(rng, 0.1, 0.7) * near * deep


def _field(radius: Tensor, angle: Tensor, half: float, rng: torch.Generator) -> Tensor:
    """Diffuse haze, patchy, fading with depth."""
    field = smooth_field(radius.shape, int(uniform(rng, 3, 9)), rng).clamp_min(0)
    return uniform(rng, 0.05, 0.35) * field * torch.exp(-radius / uniform(rng, 0.15, 1.5))


def multipath_picture(
    tissue: Tensor, sector: Tensor, rng: torch.Generator, level: float | None = None, db: float | None = None
) -> Tensor:
    """Grey values of the tissue and of its echoes by longer paths, which meet as echoes of random phase.

    Every copy is the picture moved away from the transducer along the beams, attenuated, smeared across them; a
    reverberation between transducer and skin repeats the near field. All fade with depth.

    Args:
        level: RMS of these echoes over that of the tissue's; None: 0.1 to 0.6.
        db: dynamic range of the log compression; None: 45 to 65.
    """
    db = uniform(rng, 45, 65) if db is None else db
    echoes = decompress(tissue, db)
    where = geometry(sector)
    radius, _ = polar(where, sector.shape)
    haze = torch.zeros_like(echoes)
    for _ in range(1 + int(uniform(rng, 0, 3.5))):
        copy = delayed(echoes, where, uniform(rng, 0.04, 0.45))
        haze += uniform(rng, 0.2, 1.0) * smeared(copy, uniform(rng, 0.5, 4))
    if uniform(rng, 0, 1) < 0.5:
        short, loss, first = uniform(rng, 0.03, 0.1), uniform(rng, 0.5, 0.9), echoes * (radius < 0.15)
        for k in range(1, 5):
            haze += 2 * loss**k * smeared(delayed(first, where, k * short), 2)
    haze *= torch.exp(-radius / uniform(rng, 0.2, 1.2))
    strength = float(haze[:, sector].square().mean().sqrt())
    wanted = (uniform(rng, 0.1, 0.6) if level is None else level) * float(echoes[:, sector].square().mean().sqrt())
    haze *= wanted / max(strength, 1e-9)
    turn = 2 * math.pi * torch.rand(sector.shape, generator=rng)
    both = (echoes + haze * torch.cos(turn)).square() + (haze * torch.sin(turn)).square()
    return compress(both.sqrt(), db).clamp(0, 1)


def delayed(frames: Tensor, where: SectorGeometry, depth: float) -> Tensor:
    """The picture moved away from the transducer along its beams, by a share of the sector's depth; black above."""
    rows, columns = frames.shape[1:]
    radius, angle = polar(where, frames.shape[1:])
    back = radius - depth
    row = where.row + back * torch.cos(angle) * where.depth
    column = where.column + back * torch.sin(angle) * where.depth
    grid = torch.stack([(2 * column + 1) / columns - 1, (2 * row + 1) / rows - 1], -1)
    return F.grid_sample(frames[None], grid[None], align_corners=False)[0] * (back > 0)


def smeared(frames: Tensor, pixels: float) -> Tensor:
    """Blurred along the rows by a Gaussian of this standard deviation."""
    reach = max(1, round(2 * pixels))
    weights = torch.exp(-((torch.arange(-reach, reach + 1) / pixels) ** 2) / 2)
    return F.conv2d(frames[:, None], (weights / weights.sum())[None, None, None], padding=(0, reach))[:, 0]
