"""The coarse grid on which haze is estimated, whatever the size of the picture: haze is smooth, tissue is kept as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from domains.ultrasound.containers import Cine
from domains.ultrasound.scan import Fan, FanGrid
from domains.ultrasound.sector import scan_converted

SIDE = 64
"""Pixels of the grid on its longer side. The networks are trained on such pictures."""


BLOCK = 2
"""Blocks of so many pixels a side are channels to the networks (`torch.nn.functional.pixel_unshuffle`)."""


class Reduction(Protocol):
    """Between the frames of a file and the networks' grid."""

    def reduce(self, frames: Tensor) -> Tensor:
        """Frames `(T, row, column)` on the grid."""

    def restore(self, values: Tensor) -> Tensor:
        """Values on the grid at the pixels of the frames."""


@dataclass(frozen=True)
class Grid:
    """A window of the picture, and the size it is reduced to.

    Attributes:
        rows, columns: the window; it may reach beyond the picture, where all is black.
        size: rows and columns of the grid.
        shape: of the picture.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    size: tuple[int, int]
    shape: tuple[int, int]

    def reduce(self, frames: Tensor) -> Tensor:
        """`(T, row, column)` to `(T, *size)`: means over the pixels of each cell (over the nearest, where cells are smaller)."""
        (top, bottom), (left, right) = self.rows, self.columns
        above, before = max(0, -top), max(0, -left)
        below, after = max(0, bottom - self.shape[0]), max(0, right - self.shape[1])
        window = F.pad(frames, (before, after, above, below))[
            :, top + above : bottom + above, left + before : right + before
        ]
        return F.interpolate(window[:, None], self.size, mode="area")[:, 0]

    def restore(self, values: Tensor) -> Tensor:
        """`(T, *size)` to `(T, row, column)`, bilinear; 0 outside the window."""
        (top, bottom), (left, right) = self.rows, self.columns
        fine = F.interpolate(values[:, None], (bottom - top, right - left), mode="bilinear", align_corners=False)[:, 0]
        out = values.new_zeros((len(values), *self.shape))
        inner_rows, inner_columns = (
            slice(max(top, 0), min(bottom, self.shape[0])),
            slice(max(left, 0), min(right, self.shape[1])),
        )
        out[:, inner_rows, inner_columns] = fine[
            :, inner_rows.start - top : inner_rows.stop - top, inner_columns.start - left : inner_columns.stop - left
        ]
        return out


def grid_of(cine: Cine, sector: NDArray[np.bool_]) -> Reduction:
    """The grid of a cine: a square around the sector of a picture; of echoes along diverging beams a picture of the fan; of other
    echoes all samples, their proportions kept if known."""
    shape = (int(sector.shape[0]), int(sector.shape[1]))
    if cine.angles_deg is not None:
        first, last = (math.radians(angle) for angle in cine.angles_deg)
        return FanGrid(Fan(first, last, cine.apex, *shape), SIDE)
    if not scan_converted(cine):
        return Grid((0, shape[0]), (0, shape[1]), _proportions(cine, shape), shape)
    return grid_around(sector)


def grid_around(sector: NDArray[np.bool_]) -> Grid:
    """The grid of a picture whose echoes lie in a mask `(row, column)`."""
    shape = (int(sector.shape[0]), int(sector.shape[1]))
    rows, columns = np.where(sector.any(1))[0], np.where(sector.any(0))[0]
    height, width = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
    side = max(shape)
    if side > 1.3 * max(height, width):
        side = round(1.1 * max(height, width))
        middle = (int(rows[0]) + int(rows[-1]) + 1) // 2, (int(columns[0]) + int(columns[-1]) + 1) // 2
    else:
        middle = (shape[0] // 2, shape[1] // 2)
    top, left = middle[0] - side // 2, middle[1] - side // 2
    return Grid((top, top + side), (left, left + side), (SIDE, SIDE), shape)


def _proportions(cine: Cine, shape: tuple[int, int]) -> tuple[int, int]:
    if cine.spacing_mm is None:
        return (SIDE, SIDE)
    height, width = shape[0] * cine.spacing_mm[0], shape[1] * cine.spacing_mm[1]
    largest = max(height, width)
    even = (max(8, round(SIDE / BLOCK * length / largest)) * BLOCK for length in (height, width))
    rows, columns = even
    return rows, columns


def as_tensor(array: NDArray[np.float32], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
