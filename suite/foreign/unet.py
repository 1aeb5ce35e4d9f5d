"""The attention U-Net of DDPM and ADM (Ho et al. 2020; Dhariwal and Nichol 2021), to run weights trained elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]


class Layout(BaseModel):
    """What the published variants differ in.

    Attributes:
        in_channels, out_channels: of the signal.
        widths: channels of each level, finest first; each level halves the resolution.
        blocks: residual blocks per level on the way down; one more on the way up.
        down_heads, up_heads: attention heads after each residual block of a level, finest first; 0: no attention.
        middle: two residual blocks at the coarsest level; `middle_heads` attention heads between them (0: none).
        down_residual, up_residual: whether a level is resized inside a residual block, not by a convolution.
        frequencies: length of the sinusoidal timestep code; `cosine_first` and `frequency_shift` are its conventions.
        embedding: features of the timestep embedding.
        groups, eps: of the group normalisation; `middle_groups` that of the middle attention (None: no normalisation).
        scale_shift: the timestep scales and shifts the normalised features, instead of being added before.
        symmetric: the shrinking convolution is padded on both sides, instead of only at the far ones.
        middle_divisor: outputs of the middle blocks are divided by this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    in_channels: Positive
    out_channels: Positive
    widths: list[Positive] = Field(min_length=1)
    blocks: Positive
    down_heads: list[Count]
    up_heads: list[Count]
    middle: bool = True
    middle_heads: Count = 1
    down_residual: list[bool]
    up_residual: list[bool]
    frequencies: Positive
    cosine_first: bool = True
    frequency_shift: float = 0.0
    embedding: Positive
    groups: Positive = 32
    middle_groups: Positive | None = 32
    eps: float = Field(default=1e-5, gt=0)
    scale_shift: bool = False
    symmetric: bool = True
    middle_divisor: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Layout:
        for name in ("down_heads", "up_heads", "down_residual", "up_residual"):
            if len(getattr(self, name)) != len(self.widths):
                raise ValueError(f"{name} needs one value for each of the {len(self.widths)} levels")
        uses = [*zip(self.widths, self.down_heads, strict=True), *zip(self.widths, self.up_heads, strict=True)]
        for width, heads in [*uses, (self.widths[-1], self.middle_heads)]:
            if heads and width % heads:
                raise ValueError(f"{width} channels cannot be shared among {heads} attention heads")
        groups = [(width, self.groups) for width in self.widths]
        if self.middle and self.middle_heads and self.middle_groups is not None:
            groups.append((self.widths[-1], self.middle_groups))
        for width, count in groups:
            if width % count:
                raise ValueError(f"{width} channels cannot be normalised in {count} groups")
        return self


def timestep_code(timestep: Tensor, layout: Layout) -> Tensor:
    """Sinusoids `(B, frequencies)` of the timestep `(B,)`: periods from 2 pi to 2 pi 10^4 (Vaswani et al. 2017)."""
    half = layout.frequencies // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / (half - layout.frequency_shift)
    phase = timestep.float()[:, None] * torch.exp(-math.log(10000.0) * exponent)
    waves = [phase.cos(), phase.sin()] if layout.cosine_first else [phase.sin(), phase.cos()]
    return F.pad(torch.cat(waves, dim=1), (0, layout.frequencies % 2))


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResidualBlock(nn.Module):
    """`skip(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))`, the timestep entering at `norm2`."""

    def __init__(
        self,
        layout: Layout,
        width_in: int,
        width: int,
        resize: Callable[[Tensor], Tensor] | None = None,
        divisor: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize, self.divisor = layout.scale_shift, resize, divisor
        self.norm1 = nn.GroupNorm(layout.groups, width_in, layout.eps)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.embed = nn.Linear(layout.embedding, 2 * width if layout.scale_shift else width)
        self.norm2 = nn.GroupNorm(layout.groups, width, layout.eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h = self.conv1(h)
        e = self.embed(F.silu(embedding))[..., None, None].to(h.dtype)
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + e)
        out: Tensor = (self.skip(x) + self.conv2(F.silu(h))) / self.divisor
        return out


class Attention(nn.Module):
    """Self-attention between all pixels; `qkv` holds queries, keys and values in this order, each split into heads."""

    def __init__(self, width: int, heads: int, groups: int | None, eps: float, divisor: float = 1.0) -> None:
        super().__init__()
        self.heads, self.divisor = heads, divisor
        self.norm = nn.Identity() if groups is None else nn.GroupNorm(groups, width, eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).unflatten(2, (3, self.heads, channels // self.heads)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = (x + self.out(mixed).transpose(1, 2).unflatten(2, (height, width))) / self.divisor
        return out


class Shrink(nn.Module):
    """Strided convolution to half the resolution."""

    def __init__(self, width: int, symmetric: bool) -> None:
        super().__init__()
        self.padding = (1, 1, 1, 1) if symmetric else (0, 1, 0, 1)
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, self.padding))
        return out


class Grow(nn.Module):
    """Nearest neighbours to twice the resolution, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = self.conv(double(x))
        return out


class Level(nn.Module):
    """Residual blocks, each with its attention, and the change of resolution at the end (None: none)."""

    def __init__(self, layout: Layout, inputs: list[int], width: int, heads: int, resize: nn.Module | None) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(layout, n, width) for n in inputs)
        self.att = nn.ModuleList(
            Attention(width, heads, layout.groups, layout.eps) if heads else nn.Identity() for _ in inputs
        )
        self.resize = resize


class AttentionUNet(nn.Module):
    """U-Net with concatenated skips, group normalisation and attention.

    Sizes that the levels do not divide are padded by replication and cropped again; attention and normalisation still
    tie the network to images about as large as those it was trained on.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        widths, last = layout.widths, len(layout.widths) - 1
        self.multiple = 2**last
        self.embed = nn.Sequential(
            nn.Linear(layout.frequencies, layout.embedding), nn.SiLU(), nn.Linear(layout.embedding, layout.embedding)
        )
        self.head = nn.Conv2d(layout.in_channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for i, new in enumerate(widths):
            resize: nn.Module | None = None
            if i < last:
                residual = layout.down_residual[i]
                resize = ResidualBlock(layout, new, new, halve) if residual else Shrink(new, layout.symmetric)
            inputs = [width] + [new] * (layout.blocks - 1)
            self.down.append(Level(layout, inputs, new, layout.down_heads[i], resize))
            skips += [new] * (layout.blocks + (i < last))
            width = new
        self.mid = self._middle(layout, width)
        for i, new in reversed(list(enumerate(widths))):
            resize = None
            if i > 0:
                resize = ResidualBlock(layout, new, new, double) if layout.up_residual[i] else Grow(new)
            inputs = [n + skips.pop() for n in [width] + [new] * layout.blocks]
            self.up.append(Level(layout, inputs, new, layout.up_heads[i], resize))
            width = new
        self.tail_norm = nn.GroupNorm(layout.groups, width, layout.eps)
        self.tail = nn.Conv2d(width, layout.out_channels, 3, padding=1)

    @staticmethod
    def _middle(layout: Layout, width: int) -> nn.ModuleDict:
        if not layout.middle:
            return nn.ModuleDict()
        divisor, heads = layout.middle_divisor, layout.middle_heads
        blocks = nn.ModuleList(ResidualBlock(layout, width, width, divisor=divisor) for _ in range(2))
        attention = Attention(width, heads, layout.middle_groups, layout.eps, divisor) if heads else nn.Identity()
        return nn.ModuleDict({"res": blocks, "att": nn.ModuleList([attention])})

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Raw output `(B, out_channels, H, W)` for `x` `(B, in_channels, H, W)` and `timestep` `(B,)`, whole or not."""
        height, width = x.shape[2:]
        pad = (0, -width % self.multiple, 0, -height % self.multiple)
        x = F.pad(x, pad, mode="replicate") if any(pad) else x
        embedding = self.embed(timestep_code(timestep, self.layout).to(self.head.weight.dtype))
        x = self.head(x)
        skips = [x]
        level: Any
        for level in self.down:
            for res, att in zip(level.res, level.att, strict=True):
                x = att(res(x, embedding))
                skips.append(x)
            if level.resize is not None:
                x = level.resize(x, embedding)
                skips.append(x)
        if self.layout.middle:
            before, after, between = (*self.mid["res"].children(), *self.mid["att"].children())
            x = after(between(before(x, embedding)), embedding)
        for level in self.up:
            for res, att in zip(level.res, level.att, strict=True):
                x = att(res(torch.cat([x, skips.pop()], dim=1), embedding))
            if level.resize is not None:
                x = level.resize(x, embedding)
        out: Tensor = self.tail(F.silu(self.tail_norm(x)))
        return out[..., :height, :width]
