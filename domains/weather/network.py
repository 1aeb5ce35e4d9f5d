"""The network: a set of seeds and the noisy field in, the correction to the linear-Gaussian denoiser out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suite.network import NoiseEmbedding, through

MOST_SEEDS = 5
SCALARS = MOST_SEEDS + 1 + 1 + 1 + 2  # one-hot K; truth or member; lead; sine and cosine of the season


class FieldConv(nn.Module):
    """Convolution over (latitude, longitude): circular where the longitudes close, mirrored with half a turn at the poles.

    An axis of length 1 has a kernel of 1, so that rings and stations cost no more than they need.

    Args:
        shape: rows and columns of the grid at full resolution.
        periodic: the longitudes close.
        poles: the rows reach both poles (then the longitudes close too).
    """

    def __init__(self, inputs: int, outputs: int, shape: Sequence[int], periodic: bool, poles: bool) -> None:
        super().__init__()
        self.kernel = (3 if shape[0] > 1 else 1, 3 if shape[1] > 1 else 1)
        self.periodic, self.poles = periodic, poles
        self.conv = nn.Conv2d(inputs, outputs, self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel[0] > 1:
            x = _mirrored(x) if self.poles else F.pad(x, (0, 0, 1, 1), mode="replicate")
        if self.kernel[1] > 1:
            x = F.pad(x, (1, 1, 0, 0), mode="circular" if self.periodic else "replicate")
        out: Tensor = self.conv(x)
        return out


def _mirrored(x: Tensor) -> Tensor:
    """One row more beyond each pole: the row beside it, seen from the other side of the pole."""
    turned = torch.roll(x[:, :, [0, -1]], x.shape[3] // 2, 3)
    return torch.cat([turned[:, :, :1], x, turned[:, :, 1:]], 2)


class Block(nn.Module):
    """`x + conv(silu(scale * conv(x) + shift))`, scale and shift from the embedding."""

    def __init__(self, width: int, features: int, grid: tuple[Any, ...]) -> None:
        super().__init__()
        self.conv1, self.conv2 = FieldConv(width, width, *grid), FieldConv(width, width, *grid)
        self.modulation = nn.Linear(features, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():  # near the identity, so that depth needs no normalisation layer
            self.conv2.conv.weight.mul_(0.2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(x))
        scale, shift = self.modulation(embedding)[..., None, None].to(h.dtype).chunk(2, dim=1)
        out: Tensor = x + self.conv2(F.silu(torch.addcmul(shift, h, 1 + scale)))
        return out


class SeedEncoder(nn.Module):
    """A field of features from a set of seeds: the same small network for each seed beside the mean of all, averaged.

    Mean and standard deviation of the set go along, so that the order of the seeds cannot matter.
    """

    def __init__(self, channels: int, static: int, width: int, grid: tuple[Any, ...]) -> None:
        super().__init__()
        self.width = width
        self.first = FieldConv(2 * channels, width, *grid)
        self.second = FieldConv(width, width, *grid)
        self.join = FieldConv(width + 3 * channels + static, width, *grid)

    def forward(self, seeds: Tensor, mean: Tensor, static: Tensor) -> Tensor:
        """`seeds` `(B, K, C, H, W)`, the linear conditional `mean` `(B, C, H, W)`, `static` maps `(1, S, H, W)`."""
        batch, count = seeds.shape[:2]
        if count:
            centre = seeds.mean(1)
            spread = seeds.std(1) if count > 1 else torch.zeros_like(centre)
            pairs = torch.cat([seeds, centre[:, None].expand_as(seeds)], 2).flatten(0, 1)
            h = self.second(F.silu(self.first(pairs)))
            pooled = F.silu(h).unflatten(0, (batch, count)).mean(1)
        else:
            centre = spread = torch.zeros_like(mean)
            pooled = mean.new_zeros(batch, self.width, *mean.shape[2:])
        maps = static.expand(batch, *static.shape[1:])
        out: Tensor = self.join(torch.cat([pooled.to(mean.dtype), centre, spread, mean, maps], 1))
        return out


class FieldNet(nn.Module):
    """U-Net on a latitude-longitude grid, a ring or a station, conditioned on the features of `SeedEncoder`.

    Args:
        channels: fields per member.
        static: static maps (climatology, position, mask).
        shape: rows, columns.
        widths: of each level; a level halves the axes that are longer than 1. One level keeps a ring's symmetry exact.
        blocks: residual blocks per level, each way.
        features: width of the embedding of noise level, seeds, lead and season.
    """

    def __init__(
        self,
        channels: int,
        static: int,
        shape: Sequence[int],
        periodic: bool,
        poles: bool,
        widths: Sequence[int] = (64, 96),
        blocks: int = 2,
        features: int = 128,
    ) -> None:
        super().__init__()
        self.settings = {
            "channels": channels, "static": static, "shape": list(shape), "periodic": periodic, "poles": poles,
            "widths": list(widths), "blocks": blocks, "features": features,
        }  # fmt: skip
        grid = (tuple(shape), periodic, poles)
        stride = (2 if shape[0] > 1 else 1, 2 if shape[1] > 1 else 1)
        self.multiple = tuple(s ** (len(widths) - 1) for s in stride)
        self.periodic = periodic
        self.noise = NoiseEmbedding(features)
        self.scalars = nn.Sequential(nn.Linear(SCALARS, features), nn.SiLU(), nn.Linear(features, features))
        self.encode = SeedEncoder(channels, static, widths[0], grid)
        self.head = FieldConv(2 * channels, widths[0], *grid)
        self.tail = FieldConv(widths[0], channels, *grid)
        with torch.no_grad():  # the untrained network leaves the linear-Gaussian denoiser as it is
            self.tail.conv.weight.mul_(0.1)
            assert self.tail.conv.bias is not None
            self.tail.conv.bias.zero_()

        def level(width: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, features, grid) for _ in range(blocks))

        self.down = nn.ModuleList(level(w) for w in widths)
        self.up = nn.ModuleList(level(w) for w in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, stride, stride) for a, b in itertools.pairwise(widths))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, stride, stride) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor, c_noise: Tensor, scalars: Tensor, context: Tensor) -> Tensor:
        """`(B, C, H, W)` for `x` `(B, 2C, H, W)`, `c_noise` `(B,)`, `scalars` `(B, 10)` and the encoder's `context`."""
        embedding = self.noise(c_noise) + self.scalars(scalars)
        size = x.shape[2:]
        h = self.head(x) + context
        rows, columns = (-n % m for n, m in zip(size, self.multiple, strict=True))
        if rows:
            h = F.pad(h, (0, 0, 0, rows), mode="replicate")
        if columns:
            h = F.pad(h, (0, columns, 0, 0), mode="circular" if self.periodic else "replicate")
        h = through(self, h, embedding)
        out: Tensor = self.tail(F.silu(h))[:, :, : size[0], : size[1]]
        return out
