"""Scan conversion: from samples along beams that meet in a point to a picture of the fan, and back to the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from suite.errors import InputError


@dataclass(frozen=True)
class Fan:
    """Where samples of a sector scan lie: sample i of beam j at the distance `apex + i / (samples - 1)` from the point where the
    beams meet (in beam lengths), at an angle from `first` (beam 0) to `last` from the vertical, in radians.

    Raises:
        InputError: angles beyond the horizontal or alike, or fewer than two samples or beams.
    """

    first: float
    last: float
    apex: float
    samples: int
    beams: int

    def __post_init__(self) -> None:
        if not (max(abs(self.first), abs(self.last)) < math.pi / 2 and abs(self.last - self.first) > 1e-3):
            raise InputError(
                f"the beams of a sector lie between -90 and 90 degrees, and differ; they are said to run from "
                f"{math.degrees(self.first):.3g} to {math.degrees(self.last):.3g}"
            )
        if min(self.samples, self.beams) < 2 or self.apex < 0:
            raise InputError(f"a sector needs two samples and two beams, not {self.samples} and {self.beams}")

    @property
    def window(self) -> tuple[float, float, float, float]:
        """Top, bottom, left and right of the fan, in beam lengths from the point where the beams meet."""
        reach, low, high = self.apex + 1, min(self.first, self.last), max(self.first, self.last)
        near = self.apex if low <= 0 <= high else reach
        top = min(near * 1.0, self.apex * math.cos(low), self.apex * math.cos(high))
        bottom = reach * (1.0 if low <= 0 <= high else max(math.cos(low), math.cos(high)))
        left = min(reach * math.sin(low), self.apex * math.sin(low))
        right = max(reach * math.sin(high), self.apex * math.sin(high))
        return top, bottom, left, right

    def square(self) -> tuple[float, float, float]:
        """Top, left and side of the square about the fan."""
        top, bottom, left, right = self.window
        side = max(bottom - top, right - left)
        return (top + bottom - side) / 2, (left + right - side) / 2, side


def to_picture(frames: Tensor, fan: Fan, size: int) -> Tensor:
    """`(T, samples, beams)` to pictures `(T, size, size)`, bilinear; 0 outside the fan."""
    top, left, side = fan.square()
    line = (torch.arange(size, device=frames.device) + 0.5) / size * side
    y, x = (top + line)[:, None], (left + line)[None, :]
    sample = torch.hypot(x, y) - fan.apex
    beam = (torch.atan2(x.expand(size, size), y.expand(size, size)) - fan.first) / (fan.last - fan.first)
    inside = (sample >= 0) & (sample <= 1) & (beam >= 0) & (beam <= 1)
    grid = torch.stack([2 * beam - 1, 2 * sample - 1], -1).float().expand(len(frames), -1, -1, -1)
    return F.grid_sample(frames[:, None].float(), grid, align_corners=True)[:, 0] * inside


def to_beams(pictures: Tensor, fan: Fan) -> Tensor:
    """Pictures `(T, size, size)` of the fan to its samples `(T, samples, beams)`, bilinear."""
    top, left, side = fan.square()
    radius = fan.apex + torch.linspace(0, 1, fan.samples, device=pictures.device)[:, None]
    angle = torch.linspace(fan.first, fan.last, fan.beams, device=pictures.device)[None, :]
    x, y = radius * torch.sin(angle), radius * torch.cos(angle)
    grid = torch.stack([2 * (x - left) / side - 1, 2 * (y - top) / side - 1], -1).expand(len(pictures), -1, -1, -1)
    return F.grid_sample(pictures[:, None].float(), grid, align_corners=False, padding_mode="border")[:, 0]


@dataclass(frozen=True)
class FanGrid:
    """The networks' grid of echoes along diverging beams: a picture of the fan, as the networks know it.

    Attributes:
        fan: where the samples lie.
        size: of the picture, rows and columns alike.
    """

    fan: Fan
    size: int

    def reduce(self, frames: Tensor) -> Tensor:
        """`(T, samples, beams)` to `(T, size, size)`; samples closer than the grid are averaged first."""
        shape = min(self.fan.samples, 2 * self.size), min(self.fan.beams, 2 * self.size)
        return to_picture(F.interpolate(frames[:, None], shape, mode="area")[:, 0], self.fan, self.size)

    def restore(self, values: Tensor) -> Tensor:
        """`(T, size, size)` to `(T, samples, beams)`."""
        return to_beams(values, self.fan)
