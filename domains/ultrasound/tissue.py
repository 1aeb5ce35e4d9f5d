"""Simulated tissue for training: beating chambers, walls, layers and bright boundaries in a fan or a rectangle of speckle.

Real cines without haze are few, and a network that knows few takes the tissue of others for haze. These hearts are crude, but no
two are alike, and what stands still and shines in them is tissue.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.ultrasound.clutter import uniform
from domains.ultrasound.haze import smooth_field


def simulated_tissue(frames: int, side: int, rng: torch.Generator) -> Tensor:
    """Grey values 0..1 `(frames, side, side)` of a random anatomy without haze."""
    fan = uniform(rng, 0, 1) < 0.85
    sector = _fan(side, rng) if fan else _box(side, rng)
    y, x = _coordinates(side)
    level = _background(side, rng)
    beat = torch.sin(2 * math.pi * (torch.arange(frames) * uniform(rng, 0.02, 0.12) + uniform(rng, 0, 1)))[
        :, None, None
    ]
    drift = uniform(rng, -0.03, 0.03), uniform(rng, -0.03, 0.03)
    level = level.expand(frames, side, side).clone()
    for _ in range(int(uniform(rng, 0, 4.5))):
        level = _chamber(level, y + drift[0] * beat, x + drift[1] * beat, beat, rng)
    for _ in range(int(uniform(rng, 0, 4.5))):
        level = level + _boundary(y + 0.5 * drift[0] * beat, x + 0.5 * drift[1] * beat, rng)
    db = level + speckle(frames, side, rng)
    grey = 1 + db / uniform(rng, 45, 75)
    return grey.clamp(0, 1) * sector


def _coordinates(side: int) -> tuple[Tensor, Tensor]:
    line = (torch.arange(side) + 0.5) / side
    return line[:, None], line[None, :]


def _fan(side: int, rng: torch.Generator) -> Tensor:
    y, x = _coordinates(side)
    down, across = y - uniform(rng, 0.0, 0.12), x - uniform(rng, 0.45, 0.55)
    inside = (across.abs() < uniform(rng, 0.0, 0.12) + math.tan(uniform(rng, 0.5, 0.85)) * down) & (down > 0)
    return inside & (torch.hypot(down, across) < uniform(rng, 0.75, 0.95))


def _box(side: int, rng: torch.Generator) -> Tensor:
    y, x = _coordinates(side)
    half, deep = uniform(rng, 0.25, 0.5), uniform(rng, 0.7, 1.0)
    return ((x - 0.5).abs() < half) & (y < deep)


def _background(side: int, rng: torch.Generator) -> Tensor:
    """Echogenicity in dB: uneven, with layers near the transducer, darker or brighter with depth, shadows along columns."""
    y, x = _coordinates(side)
    level = uniform(rng, -45, -15) + uniform(rng, -25, 10) * y
    level = level + uniform(rng, 1, 9) * smooth_field(torch.Size((side, side)), int(uniform(rng, 3, 10)), rng)
    if uniform(rng, 0, 1) < 0.6:
        depth, period = uniform(rng, 0.05, 0.9), uniform(rng, 0.02, 0.15)
        layers = torch.sin(2 * math.pi * ((y + uniform(rng, -0.3, 0.3) * (x - 0.5)) / period + uniform(rng, 0, 1)))
        level = level + uniform(rng, 2, 14) * layers * torch.exp(-((y / depth) ** 2))
    if uniform(rng, 0, 1) < 0.4:
        level = level + uniform(rng, 5, 20) * torch.exp(-(((y - uniform(rng, 0, 0.3)) / uniform(rng, 0.03, 0.15)) ** 2))
    if uniform(rng, 0, 1) < 0.3:
        level = level - uniform(rng, 5, 30) * torch.exp(
            -(((x - uniform(rng, 0.2, 0.8)) / uniform(rng, 0.02, 0.1)) ** 2)
        )
    return level


def _chamber(level: Tensor, y: Tensor, x: Tensor, beat: Tensor, rng: torch.Generator) -> Tensor:
    """Dark blood inside a bright wall that contracts."""
    row, column = uniform(rng, 0.2, 0.8), uniform(rng, 0.25, 0.75)
    tall, wide = uniform(rng, 0.06, 0.3), uniform(rng, 0.05, 0.2)
    turn, squeeze = uniform(rng, -0.8, 0.8), uniform(rng, 0.0, 0.25)
    v = (y - row) * math.cos(turn) + (x - column) * math.sin(turn)
    u = (x - column) * math.cos(turn) - (y - row) * math.sin(turn)
    shape = torch.hypot(v / (tall * (1 + 0.5 * squeeze * beat)), u / (wide * (1 + squeeze * beat)))
    wall, soft = uniform(rng, 1.1, 1.6), uniform(rng, 0.04, 0.2)
    blood, bright = torch.sigmoid((1 - shape) / soft), torch.sigmoid((wall - shape) / soft)
    level = level * (1 - bright) + bright * uniform(rng, -35, -5)
    return level * (1 - blood) + blood * uniform(rng, -75, -40)


def _boundary(y: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
    """A bright curved line or blot: valve, pericardium, rib, diaphragm."""
    row, column, turn = uniform(rng, 0.05, 0.95), uniform(rng, 0.15, 0.85), uniform(rng, -1.5, 1.5)
    v = (y - row) * math.cos(turn) + (x - column) * math.sin(turn)
    u = (x - column) * math.cos(turn) - (y - row) * math.sin(turn)
    v = v + uniform(rng, -3, 3) * u**2
    thick, long = uniform(rng, 0.01, 0.06), uniform(rng, 0.03, 0.3)
    return uniform(rng, 8, 40) * torch.exp(-((v / thick) ** 2) - (u / long) ** 2)


def speckle(frames: int, side: int, rng: torch.Generator) -> Tensor:
    """Rayleigh speckle in dB, averaged somewhat, that changes slowly over time."""
    field = torch.randn((4, 1, side, side), generator=rng)
    weights = torch.exp(-(torch.arange(-3, 4) ** 2) / 2 / uniform(rng, 0.4, 1.6) ** 2)
    tall = torch.exp(-(torch.arange(-3, 4) ** 2) / 2 / uniform(rng, 0.3, 0.9) ** 2)
    field = F.conv2d(
        F.conv2d(field, weights.reshape(1, 1, 1, 7), padding=(0, 3)), tall.reshape(1, 1, 7, 1), padding=(3, 0)
    )
    field = (field / field.std())[:, 0]
    turn = (uniform(rng, 0, 0.6) * torch.arange(frames))[:, None, None]
    real, imag = (torch.cos(turn) * field[k] + torch.sin(turn) * field[k + 2] for k in (0, 1))
    envelope = torch.hypot(real, imag)
    return uniform(rng, 0.4, 1.0) * 20 * torch.log10(envelope.clamp_min(0.05) / math.sqrt(math.pi / 2))
