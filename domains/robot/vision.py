"""What cameras see, as a few numbers beside the observation's own: a small residual network with spatial softmax."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from suite.errors import InputError

Pictures = NDArray[np.uint8]


class _Residual(nn.Module):
    """Two convolutions with group normalisation beside a shortcut; halves the size."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(8, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, after)
        self.skip = nn.Conv2d(before, after, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.conv1(x)))
        out: Tensor = F.silu(self.norm2(self.conv2(h)) + self.skip(x))
        return out


class ImageEncoder(nn.Module):
    """A small ResNet with group normalisation whose last maps become points: their spatial softmax (Levine et al. 2016).

    Group normalisation, since batch statistics do not go with the averaged weights of diffusion training (Chi et al. 2023,
    section 3.2).

    Args:
        cameras: their names; all share the network.
        size: height and width of the pictures.
        channels: of the stem and the residual blocks, each of which halves the size; multiples of 8.
        points: per camera.
    """

    def __init__(self, cameras: list[str], size: int, channels: list[int], points: int) -> None:
        super().__init__()
        if not cameras or not channels or any(c % 8 for c in channels) or size < 2 ** (len(channels) + 1):
            raise InputError(
                f"an image encoder needs a camera, channels that are multiples of 8 and pictures of at least "
                f"{2 ** (len(channels) + 1)} pixels, not {cameras}, {channels} and {size}"
            )
        self.cameras, self.size, self.features = list(cameras), size, 2 * points * len(cameras)
        self.stem = nn.Sequential(nn.Conv2d(3, channels[0], 5, stride=2, padding=2), nn.GroupNorm(8, channels[0]))
        pairs = pairwise(channels)
        self.blocks = nn.ModuleList(_Residual(before, after) for before, after in pairs)
        self.maps = nn.Conv2d(channels[-1], points, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """`(B, features)` in [-1, 1] of `(B, cameras, 3, size, size)` uint8: column and row of each point."""
        batch, cameras = pictures.shape[:2]
        x = F.silu(self.stem(pictures.flatten(0, 1).float() / 127.5 - 1))
        for block in self.blocks:
            x = block(x)
        heat = self.maps(x).float().flatten(2).softmax(-1)
        side = torch.linspace(-1, 1, x.shape[-1], device=x.device)
        row, column = torch.meshgrid(side, side, indexing="ij")
        points = heat @ torch.stack([column.flatten(), row.flatten()], dim=1)
        return points.reshape(batch, cameras * points.shape[1] * 2)


def shaken(pictures: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Each example `(B, cameras, 3, S, S)` shifted by up to `most` pixels, its edge repeated (Kostrikov et al. 2021)."""
    if most == 0:
        return pictures
    size = pictures.shape[-1]
    index = torch.arange(size, device=pictures.device)
    shift = torch.randint(-most, most + 1, (len(pictures), 2), generator=rng).to(pictures.device)
    rows, columns = ((index + shift[:, i : i + 1]).clamp(0, size - 1) for i in (0, 1))
    moved = pictures.gather(3, rows[:, None, None, :, None].expand_as(pictures))
    return moved.gather(4, columns[:, None, None, None, :].expand_as(pictures))


def resized(values: ArrayLike, size: int, where: str) -> Pictures:
    """Pictures `(..., H, W, 3)` or `(..., 3, H, W)` as `(..., 3, size, size)` uint8, by averaging over areas.

    Floating-point pictures have the range 0 to 1 or 0 to 255.

    Raises:
        InputError: no pictures of three channels, or values out of range.
    """
    array = np.asarray(values)
    if array.ndim < 3 or array.size == 0 or array.dtype.kind not in "fu" or 3 not in (array.shape[-1], array.shape[-3]):
        raise InputError(f"{where}: pictures (rows, columns, 3) are needed, not {array.dtype} {array.shape}")
    if array.shape[-1] == 3:
        array = np.moveaxis(array, -1, -3)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 255):  # NaN, too
            raise InputError(f"{where}: the pictures hold values from {low} to {high}; 0 to 1, or 0 to 255, is needed")
        array = array * (255 if high <= 1 else 1)
    lead, rest = array.shape[:-3], array.shape[-3:]
    if rest[1:] == (size, size):
        return np.ascontiguousarray(np.round(array), dtype=np.uint8)
    flat = array.reshape(-1, *rest)
    parts = [_area(flat[i : i + 256], size) for i in range(0, len(flat), 256)]
    return np.concatenate(parts).reshape(*lead, 3, size, size)


def _area(part: NDArray[Any], size: int) -> Pictures:
    small = F.interpolate(torch.from_numpy(part.astype(np.float32)), (size, size), mode="area")
    return np.asarray(small.round().byte().numpy())
