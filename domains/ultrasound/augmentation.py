"""Cines as another patient, probe or display would show them. Cines without haze are few; what varies here is what a network must
not take for haze: the shape of the heart, contrast and gain, the grain of the speckle.

Frames are `(w, rows, columns)`, grey 0..1; all frames of a cine are changed alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.ultrasound.clutter import uniform
from domains.ultrasound.haze import smooth_field
from domains.ultrasound.tissue import speckle


def placed(frames: Tensor, patch: int, rng: torch.Generator, *, vary: bool) -> Tensor:
    """On `patch` x `patch` pixels, mirrored, turned, scaled, shifted and bent."""
    turn, zoom, mirror = uniform(rng, -0.2, 0.2), uniform(rng, 0.8, 1.3), 1.0 if uniform(rng, 0, 1) < 0.5 else -1.0
    shift, bend = (uniform(rng, -0.15, 0.15), uniform(rng, -0.15, 0.15)), uniform(rng, 0, 0.05)
    if not vary or uniform(rng, 0, 1) < 0.25:
        turn, zoom, shift, bend, mirror = 0.0, 1.0, (0.0, 0.0), 0.0, mirror if vary else 1.0
    if turn == 0 and frames.shape[1:] == (patch, patch):
        return frames if mirror > 0 else frames.flip(-1)
    a, b = zoom * math.cos(turn), zoom * math.sin(turn)
    theta = torch.tensor([[[a * mirror, -b, shift[0]], [b * mirror, a, shift[1]]]])
    grid = F.affine_grid(theta, [1, len(frames), patch, patch], align_corners=False)
    if bend > 0:
        cells = int(uniform(rng, 3, 7))
        grid = grid + bend * torch.stack([smooth_field(grid.shape[1:3], cells, rng) for _ in range(2)], -1)
    return F.grid_sample(frames[None], grid, align_corners=False)[0]


def regraded(frames: Tensor, rng: torch.Generator) -> Tensor:
    """Another dynamic range, gain, contrast and gamma, as another display would have, and at times an uneven gain."""
    grey = frames.clamp(0, 1)
    if uniform(rng, 0, 1) < 0.5:
        black = uniform(rng, -0.2, 0.2)  # of another dynamic range; what was black outside the sector stays so
        grey = ((grey - black) / (1 - black)).clamp(0, 1) * (grey > 0.01)
    if uniform(rng, 0, 1) < 0.3:
        grey = grey + uniform(rng, -0.8, 0.8) * torch.sin(2 * math.pi * grey) / (2 * math.pi)
    gamma, gain = math.exp(uniform(rng, -0.5, 0.5)), uniform(rng, 0.6, 1.2)
    uneven = uniform(rng, 0, 0.35) if uniform(rng, 0, 1) < 0.5 else 0.0
    field = 1 + uneven * smooth_field(frames.shape[1:], int(uniform(rng, 3, 8)), rng)
    return (gain * field * grey**gamma).clamp(0, 1)


def regrained(frames: Tensor, rng: torch.Generator) -> Tensor:
    """Smoothed as by another pulse, or with other speckle over its own."""
    draw = uniform(rng, 0, 1)
    if draw < 0.25:
        line = torch.arange(-2, 3)
        across, down = (torch.exp(-((line / uniform(rng, 0.3, 1.0)) ** 2) / 2) for _ in range(2))
        kernel = down[:, None] * across
        return F.conv2d(frames[:, None], (kernel / kernel.sum())[None, None], padding=2)[:, 0]
    if draw < 0.6:
        grain = speckle(len(frames), frames.shape[1], rng) / 60
        return (frames + uniform(rng, 0.1, 0.7) * grain * (frames > 0.01)).clamp(0, 1)
    return frames


def blended(one: Tensor, other: Tensor, rng: torch.Generator) -> Tensor:
    """One cine in some places and the other in the rest, with soft seams: anatomies that neither shows."""
    field = smooth_field(one.shape[1:], int(uniform(rng, 2, 6)), rng)
    share = torch.sigmoid((field + uniform(rng, -0.5, 0.5)) / uniform(rng, 0.05, 0.5))
    return share * one + (1 - share) * other
