"""A prior asked about mirror images: what a picture's turning and mirroring changes in its answer averages out over the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError


class Mirrored(Denoiser):
    """`D_g(x) = g^-1 D(g x)` with g one of the symmetries of the square, drawn anew in each call for the whole batch.

    A denoiser that is wrong in its own way for each g is right on average (Terris, Moreau, Pustelnik and Tachella 2024,
    equivariant plug-and-play); along a path of many steps the average costs nothing. For priors of pictures whose training
    showed them turned and mirrored. The slices of a volume are turned alike, so that neighbours err alike.

    Args:
        prior: the denoiser; state and anchor are turned.
        generator: decides g.
    """

    def __init__(self, prior: Denoiser, generator: torch.Generator) -> None:
        super().__init__(prior.process)
        self.prior, self.generator = prior, generator
        self.differentiable = prior.differentiable
        if hasattr(prior, "data_std"):
            self.data_std = prior.data_std

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if x.ndim != 4:
            raise InputError(f"mirror images are those of pictures (B, C, ny, nx), not of {tuple(x.shape)}")
        g = int(torch.randint(8, (1,), generator=self.generator, device=self.generator.device))
        if x.shape[-1] != x.shape[-2]:
            g -= g % 2  # no quarter turns
        said = self.prior(_turned(x, g), t, None if y is None else _turned(y, g))
        upright = torch.rot90(said, -(g % 4), (-2, -1))
        return upright.flip(-1) if g >= 4 else upright


def _turned(x: Tensor, g: int) -> Tensor:
    """Mirrored where g >= 4, then turned by `g % 4` quarters."""
    return torch.rot90(x.flip(-1) if g >= 4 else x, g % 4, (-2, -1))
