"""What `mri train` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from domains.mri.training import MRITrainingConfig, mri_card, patch_source
from suite.prior import Card
from suite.train_verb import train_prior
from suite.training import Source, Trainer


def train_verb(data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`mri train`: images -> prior with card."""

    def prepare(config: MRITrainingConfig) -> tuple[Source, Callable[[Trainer], Card]]:
        source, train, held_out = patch_source(data, config.data)
        return source, lambda trainer: mri_card(config, trainer, train, held_out)

    train_prior(given, MRITrainingConfig, prepare)
