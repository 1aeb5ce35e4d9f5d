"""The shared backbone: a convolutional U-Net that knows the noise level and runs on any image size.

Neither attention nor spatial normalisation: both tie a network to the size it was trained on, and this one is trained
on patches and applied to whole images (for that reason MONAI's GroupNorm-based diffusion U-Net does not fit here).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suite.denoiser import read_head
from suite.errors import InputError

_CONV: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_APPLY: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_UP: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

TWO_HEADS = "residual+eps"  # RDDM's pair (Liu et al. 2024): y - x0 and eps, each in its own channels
Head = Literal["edm", "eps", "x0", "v", "residual", "resnoise", "residual+eps"]


class NoiseEmbedding(nn.Module):
    """Fourier features of `log(sigma/alpha)/4` through a small network (Karras et al. 2022, c_noise)."""

    frequencies: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(math.log(0.5), math.log(32.0), 16)), persistent=False
        )
        self.net = nn.Sequential(nn.Linear(32, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU())

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None] * self.frequencies
        out: Tensor = self.net(torch.cat([phase.sin(), phase.cos()], dim=1))
        return out


class ResidualBlock(nn.Module):
    """`x + conv(silu(scale * conv(x) + shift))`, scale and shift from the noise level."""

    def __init__(self, dims: int, channels: int, features: int) -> None:
        super().__init__()
        self.conv1 = _CONV[dims - 1](channels, channels, 3, padding=1)
        self.conv2 = _CONV[dims - 1](channels, channels, 3, padding=1)
        self.modulation = nn.Linear(features, 2 * channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():  # near the identity, so that depth needs no normalisation layer
            self.conv2.weight.mul_(0.2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x` `(B, C, *spatial)`, `embedding` `(B, features)`."""
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        gain, conv1 = 1 + scale, self.conv1
        if torch.is_grad_enabled() or len(embedding) > 1:
            h = conv1(x)
            gain, shift = (m[(...,) + (None,) * (h.ndim - 2)].to(h.dtype) for m in (gain, shift))
            out: Tensor = x + self.conv2(F.silu(torch.addcmul(shift, h, gain), inplace=not torch.is_grad_enabled()))
            return out
        # One noise level for all: it goes into the weights, which are smaller than the image.
        weight = conv1.weight * gain[0].to(conv1.weight.dtype)[(...,) + (None,) * (x.ndim - 1)]
        bias = (shift[0] + gain[0] * conv1.bias).to(weight.dtype)
        h = F.silu(_APPLY[x.ndim - 3](x, weight, bias, padding=1), inplace=True)
        out = self.conv2(h).add_(x)
        return out


def through(net: Any, x: Tensor, embedding: Tensor) -> Tensor:
    """Down the levels of a U-Net (its `down`, `shrink`, `grow` and `up`) and up again, with additive skips."""
    skips = []
    level: Any
    for i, level in enumerate(net.down):
        x = net.shrink[i - 1](x) if i else x
        for block in level:
            x = block(x, embedding)
        skips.append(x)
    x = skips.pop()
    for i, level in reversed(list(enumerate(net.up))):
        x = net.grow[i](x).add_(skips.pop())
        for block in level:
            x = block(x, embedding)
    return x


def channels_last(net: nn.Module, dims: int) -> nn.Module:
    """The network with its weights laid out as convolutions on a processor are fastest; of one dimension as it is."""
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims, torch.preserve_format)
    out: nn.Module = net.to(memory_format=layout)  # type: ignore[call-overload]
    return out


def bfloat16_convolutions(net: nn.Module) -> nn.Module:
    """A copy whose convolutions hold their weights in bfloat16, for autocast: it would convert them in every evaluation."""
    out = copy.deepcopy(net)
    for module in out.modules():
        if isinstance(module, (*_CONV, *_UP)):
            module.bfloat16()
    return out


class UNet(nn.Module):
    """U-Net of residual blocks with additive skips.

    Args:
        in_channels: channels of the noisy signal plus those of a condition.
        out_channels: channels of the signal.
        channels: width of each level; each level halves the resolution of the one before.
        blocks: residual blocks per level, on the way down and again on the way up.
        dims: 1, 2 or 3 spatial dimensions.
        features: width of the noise level's embedding.

    Raises:
        InputError: another number of dimensions, or a width or count below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        blocks: int = 2,
        dims: int = 2,
        features: int = 256,
    ) -> None:
        super().__init__()
        if dims not in (1, 2, 3) or not channels or min(in_channels, out_channels, blocks, features, *channels) < 1:
            raise InputError(
                f"a U-Net needs 1, 2 or 3 dimensions and widths of at least 1, not dims = {dims}, channels = "
                f"{list(channels)}, blocks = {blocks}, features = {features}, {in_channels} -> {out_channels} channels"
            )
        conv, up = _CONV[dims - 1], _UP[dims - 1]
        self.settings = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": list(channels),
            "blocks": blocks,
            "dims": dims,
            "features": features,
        }
        self.multiple = 2 ** (len(channels) - 1)
        self.embed = NoiseEmbedding(features)
        self.head = conv(in_channels, channels[0], 3, padding=1)
        self.tail = conv(channels[0], out_channels, 3, padding=1)

        def level(width: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(dims, width, features) for _ in range(blocks))

        self.down = nn.ModuleList(level(c) for c in channels)
        self.up = nn.ModuleList(level(c) for c in channels[:-1])
        pairs = list(pairwise(channels))
        self.shrink = nn.ModuleList(conv(a, b, 2, stride=2) for a, b in pairs)
        self.grow = nn.ModuleList(up(b, a, 2, stride=2) for a, b in pairs)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Raw output `(B, out_channels, *spatial)` for `x` `(B, in_channels, *spatial)` and `c_noise` `(B,)`."""
        size = x.shape[2:]
        pad = [n for s in reversed(size) for n in (0, -s % self.multiple)]
        x = F.pad(x, pad, mode="replicate") if any(pad) else x
        embedding = self.embed(c_noise)
        x = through(self, self.head(x), embedding)
        out: Tensor = self.tail(x)
        whole: tuple[Any, ...] = (..., *map(slice, size))
        return out[whole]


class Preconditioned(nn.Module):
    """`E[x0 | z]` for `z = alpha x0 + sigma eps`: EDM preconditioning (Karras et al. 2022, table 1), any alpha, sigma.

    With `n^2 = sigma^2 + alpha^2 s^2` and data scale `s`,

        D = (alpha s^2 / n^2) z + (sigma s / n) F(z / n; log(sigma / alpha) / 4).

    Finite at alpha = 0. Only the ratio sigma/alpha matters, so one network serves VP, VE, EDM and flow alike. At the
    anchored end of a bridge, where alpha = sigma = 0 and z says nothing, `D = s F(0; log(largest ratio) / 4)`: the network
    as a predictor of x0 from its condition.

    With another head the network's output means what `suite.denoiser.HeadDenoiser` says, y being the first channels of the
    condition; its input is `z / n` all the same.

    Args:
        network: called as `network(input, c_noise)`.
        sigma_data: data scale s, in the units of x0.
        sigma_range: the ratios sigma/alpha it was trained on; the embedding is clipped to them.
        head: `edm`, the above; one of `suite.denoiser.HEADS`; or `residual+eps`, with twice the output channels.
    """

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float,
        sigma_range: tuple[float, float] = (1e-3, 1e2),
        head: str = "edm",
    ) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.sigma_range = sigma_range
        self.head = head

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(c_skip, c_out, c_in)`."""
        n = torch.sqrt(sigma**2 + (alpha * self.sigma_data) ** 2)
        pinned = n == 0
        n = torch.where(pinned, 1.0, n)
        c_out = torch.where(pinned, self.sigma_data, sigma * self.sigma_data / n)
        return alpha * self.sigma_data**2 / n**2, c_out, torch.where(pinned, 0.0, 1 / n)

    def forward(self, z: Tensor, alpha: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """D; with two heads `y - r`, then eps, side by side as channels. Arguments as in `output`."""
        return self.read(self.output(z, alpha, sigma, condition), z, alpha, sigma, condition)

    def read(self, o: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """The answer of `forward` from what `output` gave."""
        if self.head == "edm":
            c_skip, c_out, _ = (c.to(z.dtype) for c in self.coefficients(alpha, sigma))
            return c_skip * z + c_out * o
        y = None if condition is None else condition[:, : z.shape[1]]
        if self.head == TWO_HEADS:
            residual, eps = o.chunk(2, dim=1)
            return torch.cat([read_head("residual", residual, z, alpha, sigma, y), eps], dim=1)
        return read_head(self.head, o, z, alpha, sigma, y)

    def output(self, z: Tensor, alpha: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """What the network says, in the terms of its head.

        `alpha`, `sigma`: one value per batch item, shape `(B or 1, 1, ..., 1)`. The network works in the precision of its
        weights, the sum around it in that of `z`.

        Raises:
            InputError: the noise level varies within an item; this network knows one level per item.
        """
        if alpha.ndim != z.ndim or alpha[0].numel() != 1:
            raise InputError(
                "this network takes one noise level per batch item; use one trained with per-element levels"
            )
        c_in = self.coefficients(alpha, sigma)[2].to(z.dtype)
        low, high = self.sigma_range
        ratio = torch.where(alpha > 0, sigma / alpha.clamp_min(1e-12), high).clamp(low, high)
        dtype = next(self.network.parameters(), z).dtype
        c_noise = (ratio.log() / 4).to(dtype).reshape(-1).expand(z.shape[0])
        x = c_in * z if condition is None else torch.cat([c_in * z, condition], dim=1)
        out: Tensor = self.network(x.to(dtype), c_noise).to(z.dtype)
        return out
