"""What a fit works on: standardised anomalies of the training dates, and what was estimated from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from domains.weather.climate import Climatology
from domains.weather.hierarchy import LinearGaussian
from domains.weather.network import MOST_SEEDS


@dataclass(frozen=True)
class TrainingSet:
    """Standardised anomalies of the dates of one side of the split.

    Attributes:
        conditions: members as seeds `(S, D, M, C, H, W)`.
        targets: the same as targets; they differ where dry points are drawn at random.
        truth: `(S, D, C, H, W)`, or None.
        season: `(D, 2)`.
        seasonal, pooled: whether the climatology has a season, whether all points of a ring are one.
    """

    conditions: Tensor
    targets: Tensor
    truth: Tensor | None
    season: Tensor
    seasonal: bool
    pooled: bool

    @property
    def steps(self) -> int:
        return len(self.conditions)

    @property
    def dates(self) -> int:
        return int(self.conditions.shape[1])

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.conditions.shape[3:]
        return int(c), int(h), int(w)

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("member",) if self.truth is None else ("member", "truth")

    def most_seeds(self, kind: str) -> int:
        """Members that can be seeds: a member that is the target cannot be one."""
        members = int(self.conditions.shape[2])
        return min(MOST_SEEDS, members if kind == "truth" else members - 1)

    def draw(self, step: int, kind: str, seeds: int, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """`(B, K, C, H, W)` and `(B, C, H, W)`: random seeds and a random other member, or the truth, of dates `rows`."""
        members = self.conditions.shape[2]
        order = torch.rand(len(rows), members, generator=rng).argsort(1)
        x = self.conditions[step, rows[:, None], order[:, :seeds]]
        if kind == "truth":
            assert self.truth is not None
            return x, self.truth[step, rows]
        return x, self.targets[step, rows, order[:, seeds]]


@dataclass(frozen=True)
class Prepared:
    """Both sides of the split and what was estimated on the first.

    Attributes:
        train, development: the latter None where there are too few dates.
        climate: by kind.
        linear: by (lead, kind).
        informative: by kind, for each lead: whether the seeds tell anything of the target.
        static: `(1, S, H, W)`.
        mask: `(1, C, H, W)`.
        months: calendar months of the valid times in the data.
        warnings: sentences.
    """

    train: TrainingSet
    development: TrainingSet | None
    climate: dict[str, Climatology]
    linear: dict[tuple[int, str], LinearGaussian]
    informative: dict[str, list[bool]]
    static: Tensor
    mask: Tensor
    rain: tuple[int, ...]
    homogeneous: bool
    months: list[int]
    leads_hours: list[float]
    warnings: list[str]

    def most_seeds(self, step: int, kind: str) -> int:
        """Seeds that are of use at a lead."""
        return self.train.most_seeds(kind) if self.informative[kind][step] else 0
