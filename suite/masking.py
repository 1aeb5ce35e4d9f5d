"""A U-Net for restoration: it looks at magnitudes and answers with gains on the degraded and on the noisy signal."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from suite.errors import InputError
from suite.network import UNet


class MaskUNet(nn.Module):
    """`F = g y / s + h z`: a gain `0 < g < 1` on the degraded signal y and a gain h on the noisy signal z, for each entry.

    Channels are complex: the first half of a signal's channels are real parts, the second half imaginary parts. The U-Net sees
    `|y|`, `|z|` and how well the two agree, `Re(z y*) / |y|`, so what it answers does not depend on a common phase, and it need
    not learn what a spectral estimator is (Wiener's is such a gain): it learns from few examples. Where z is absent (the end of
    a bridge) it is a predictor, where y is zero an unconditional denoiser.

    Args:
        in_channels: channels of the noisy signal z and of the degraded signal y together, equally many of each.
        out_channels: channels of the signal, even.
        sigma_data: s, the scale of the data; see `suite.network.Preconditioned`.
        places: cosines of the position along the first spatial axis that the U-Net sees too, where a place has a meaning (a
            frequency); 0: it cannot tell places apart.
        channels, blocks, dims, features: of the `UNet` inside.

    Raises:
        InputError: channels that are not pairs, or that the U-Net refuses.
    """

    def __init__(
        self, in_channels: int, out_channels: int, sigma_data: float = 0.5, places: int = 0, **unet: Any
    ) -> None:
        super().__init__()
        if in_channels != 2 * out_channels or out_channels % 2:
            raise InputError(
                f"a mask network takes a complex signal and its degraded partner, both of {out_channels} channels (an even "
                f"number); it was given {in_channels} in all"
            )
        self.unet = UNet(3 * out_channels // 2 + places, out_channels, **unet)
        self.sigma_data, self.places = sigma_data, places
        own = {"in_channels": in_channels, "out_channels": out_channels, "sigma_data": sigma_data, "places": places}
        self.settings = {**self.unet.settings, **own}
        nn.init.zeros_(self.unet.tail.weight)
        nn.init.zeros_(self.unet.tail.bias)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """`(B, out_channels, *spatial)` for `x` `(B, in_channels, *spatial)`: z, then y; `c_noise` `(B,)`."""
        z, y = x.chunk(2, dim=1)
        (a, b), (c, d) = z.chunk(2, dim=1), y.chunk(2, dim=1)
        size = torch.sqrt(c * c + d * d + 1e-8)
        seen = torch.cat([size, torch.sqrt(a * a + b * b + 1e-8), (a * c + b * d) / size, *self._places(x)], dim=1)
        g, h = self.unet(seen, c_noise).float().chunk(2, dim=1)
        g = torch.sigmoid(g) / self.sigma_data
        return torch.cat([g, g], dim=1) * y + torch.cat([h, h], dim=1) * z

    def _places(self, x: Tensor) -> list[Tensor]:
        """`cos(pi 2^k r)` for places r from 0 to 1, as channels."""
        if not self.places:
            return []
        count = x.shape[2]
        r = (torch.arange(count, device=x.device, dtype=torch.float32) + 0.5) / count
        waves = torch.cos(math.pi * 2.0 ** torch.arange(self.places, device=x.device)[:, None] * r).to(x.dtype)
        return [waves.reshape(1, self.places, count, *(1,) * (x.ndim - 3)).expand(len(x), -1, *x.shape[2:])]
