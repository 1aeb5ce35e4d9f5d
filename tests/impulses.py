"""A noise source that makes a solver's response to each draw visible."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.noise import Noise


class Impulses(Noise):
    """Draw number j is 1 in batch item j + 1 and 0 elsewhere, so that one run gives the response to every draw."""

    def __init__(self) -> None:
        super().__init__([])
        self.count = 0

    def normal(self, like: Tensor) -> Tensor:
        out = torch.zeros_like(like)
        self.count += 1
        out[self.count] = 1
        return out
