"""Training examples: a few observations, and the chunk of actions that followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from domains.robot.containers import Episode
from domains.robot.normalizer import Normalizer
from suite.errors import InputError


@dataclass(frozen=True)
class Windows:
    """Every step of every episode as one example, in network units.

    At the end of an episode its last action is repeated, at the beginning its first observation.

    Attributes:
        condition: `(N, T * O')`, the observations of the last T steps, oldest first.
        chunk: `(N, A, H)`, the actions from now on.
        pictures: `(N, cameras, 3, size, size)` uint8, the newest; None where there are none.
    """

    condition: Tensor
    chunk: Tensor
    pictures: Tensor | None = None

    def __len__(self) -> int:
        return len(self.chunk)

    def thinned(self, most: int) -> Windows:
        """Every n-th example, so that about `most` are left."""
        every = max(1, len(self) // most)
        pictures = None if self.pictures is None else self.pictures[::every]
        return Windows(self.condition[::every], self.chunk[::every], pictures)


def windows(episodes: Sequence[Episode], normalizer: Normalizer, steps: int, horizon: int) -> Windows:
    """Examples of these episodes; `steps` observations and `horizon` actions each.

    Raises:
        InputError: there is no episode.
    """
    if not episodes:
        raise InputError("no episode is left to make examples of")
    conditions, chunks = [], []
    for episode in episodes:
        length = len(episode)
        now = torch.arange(length)[:, None]
        seen = normalizer.observation(torch.tensor(episode.observation))
        done = normalizer.action(torch.tensor(episode.action))
        past = (now + torch.arange(1 - steps, 1)).clamp(0, length - 1)
        future = (now + torch.arange(horizon)).clamp(0, length - 1)
        conditions.append(seen[past].flatten(1))
        chunks.append(done[future].transpose(1, 2))
    shown = [torch.from_numpy(e.pictures) for e in episodes if e.pictures is not None]
    return Windows(torch.cat(conditions), torch.cat(chunks), torch.cat(shown) if shown else None)
