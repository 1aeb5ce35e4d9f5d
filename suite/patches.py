"""Training patches from the images of several subjects, and an honest split between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from suite.errors import InputError


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
    """Random patches of the training subjects, flipped, turned and rescaled; fixed ones, not rescaled, for validation.

    An image smaller than the patch is enlarged, its proportions kept.

    Args:
        train, validation: the split, by subject; a name on both sides is refused.
        zoom: patches are cut from a square whose side is up to this factor smaller or larger, and resampled.
        background: patches whose mean lies below this value are drawn again, at most three in all (empty air).
        validation_patches: how many, over all validation subjects in turn.

    Raises:
        InputError: a side is empty, a subject is on both or has no images, or channels differ.
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
        if not self.train or not self.held_out:
            raise InputError("training needs at least one subject to train on and another to validate with")
        both = {s.name for s in self.train} & {s.name for s in self.held_out}
        if both:
            raise InputError(
                f"the subject {min(both)} is both trained on and validated with; it belongs on one side only"
            )
        for subject in (*self.train, *self.held_out):
            shape = tuple(subject.images.shape)
            if len(shape) != 4 or 0 in shape or shape[1] != self.train[0].images.shape[1]:
                raise InputError(
                    f"the images of {subject.name} have the shape {shape}; (N, C, H, W), C the same for all, is needed"
                )
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
            cut = max(1, min(round(patch * factor), *images.shape[2:]))
            slot = int(torch.randint(len(images), (), generator=rng))
            i, j = (int(torch.randint(n - cut + 1, (), generator=rng)) for n in images.shape[2:])
            x = images[slot, :, i : i + cut, j : j + cut].float()
            if float(x.mean()) > self.background:
                break
        if cut != patch:
            x = F.interpolate(x[None], (patch, patch), mode="bicubic", antialias=True, align_corners=False)[0]
        turns = int(torch.randint(8, (), generator=rng))
        x = torch.rot90(x, turns % 4, (1, 2))
        return x.flip(1) if turns >= 4 else x
