"""Random numbers that belong to a case, not to a batch: seed and identity decide them, order and batch size do not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, identity: str = "") -> torch.Generator:
    """A CPU generator seeded by SHA-256 of `seed` and `identity` (seed 0 counts like any other)."""
    digest = hashlib.sha256(f"{seed}\0{identity}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Noise:
    """Standard normal draws for a batch; drawn on the CPU, so that devices agree.

    With one generator per batch item, item `i` receives the same numbers whatever stands beside it. With a single
    generator the whole batch shares it (large closed-form tests).
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)

    @classmethod
    def of(cls, seed: int, identities: Sequence[str] = ("",)) -> Noise:
        """One generator for each identity (file hash, slice number, sample number, ...)."""
        return cls([generator(seed, identity) for identity in identities])

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) of the shape, dtype and device of `like` `(B, ...)`; complex: N(0, 1) in each of the two parts.

        Raises:
            ValueError: the batch has neither one item per generator nor a single shared generator.
        """
        real = torch.float64 if like.dtype in (torch.float64, torch.complex128) else torch.float32
        shape = (*like.shape, 2) if like.is_complex() else tuple(like.shape)
        if len(self.generators) == 1:
            out = torch.randn(shape, generator=self.generators[0], dtype=real)
        elif len(self.generators) == shape[0]:
            out = torch.stack([torch.randn(shape[1:], generator=g, dtype=real) for g in self.generators])
        else:
            raise ValueError(
                f"a batch of {shape[0]} needs {shape[0]} generators, or one; there are {len(self.generators)}"
            )
        return (torch.view_as_complex(out) if like.is_complex() else out.to(like.dtype)).to(like.device)
