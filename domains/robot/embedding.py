"""Features of a noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LevelEmbedding(nn.Module):
    """Features of the noise level of a chunk: one number for it, or one for each of its actions.

    Args:
        levels: 1, or the horizon.
    """

    frequencies: Tensor

    def __init__(self, levels: int, features: int) -> None:
        super().__init__()
        spread = torch.exp(torch.linspace(math.log(0.5), math.log(32.0), 16))
        self.register_buffer("frequencies", spread, persistent=False)
        self.net = nn.Sequential(nn.Linear(32 * levels, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU())

    def forward(self, c_noise: Tensor) -> Tensor:
        """`(B, features)` from `c_noise` `(B, levels)`."""
        phase = c_noise[..., None] * self.frequencies
        out: Tensor = self.net(torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(1))
        return out
