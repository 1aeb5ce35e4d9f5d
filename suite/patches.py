"""Training patches from the images of several subjects, and an honest split between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Subject:
    """All images of one person, phantom or scene; a subject is on one side of the split only.

    Attributes:
        name: shown in the card.
        images: `(N, C, H, W)` in network units; sizes may differ between subjects.
        weight: relative share of the training patches.
    """

    name: str
    images: Tensor
    weight: float = 1.0


class PatchSource:
    """Random patches of the training subjects, flipped, turned and rescaled; fixed centre-weighted ones for validation.

    Args:
        train, validation: the split, by subject.
        zoom: patches are cut from an area up to this factor smaller or larger and resampled.
        background: patches whose mean lies below this value are drawn again, up to three times (empty air).
    """

    condition_channels = 0

    def __init__(
        self,
        train: Sequence[Subject],
        validation: Sequence[Subject],
        *,
        zoom: float = 1.25,
        background: float = float("-inf"),
        validation_patches: int = 96,
    ) -> None:
        self.train, self.held_out = list(train), list(validation)
        self.channels = self.train[0].images.shape[1]
        self.zoom, self.background, self.validation_patches = zoom, background, validation_patches

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, None]:
        weights = torch.tensor([s.weight for s in self.train])
        chosen = torch.multinomial(weights, size, replacement=True, generator=rng).tolist()
        return torch.stack([self._patch(self.train[i].images, patch, self.zoom, rng) for i in chosen]), None

    def validation(self, patch: int) -> tuple[Tensor, None]:
        rng = torch.Generator().manual_seed(0)
        subjects = [self.held_out[i % len(self.held_out)] for i in range(self.validation_patches)]
        return torch.stack([self._patch(s.images, patch, 1.0, rng) for s in subjects]), None

    def _patch(self, images: Tensor, patch: int, zoom: float, rng: torch.Generator) -> Tensor:
        for _ in range(3):
            factor = zoom ** (2 * float(torch.rand((), generator=rng)) - 1)
            cut = [min(round(patch * factor), n) for n in images.shape[2:]]
            slot = int(torch.randint(len(images), (), generator=rng))
            i, j = (int(torch.randint(n - c + 1, (), generator=rng)) for n, c in zip(images.shape[2:], cut, strict=True))
            x = images[slot, :, i : i + cut[0], j : j + cut[1]].float()
            if float(x.mean()) > self.background:
                break
        if cut != [patch, patch]:
            x = F.interpolate(x[None], (patch, patch), mode="bicubic", antialias=True, align_corners=False)[0]
        turns = int(torch.randint(8, (), generator=rng))
        x = torch.rot90(x, turns % 4, (1, 2))
        return x.flip(1) if turns >= 4 else x
