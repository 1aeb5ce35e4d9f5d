"""What `mri train` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from domains.mri.kspace_training import KSpaceTrainingConfig, RoundTrainer, kspace_source
from domains.mri.training import MRITrainingConfig, mri_card, patch_source
from suite.prior import Card
from suite.train_verb import train_prior
from suite.training import Source, Trainer


def train_verb(data: tuple[Path, ...], from_kspace: bool, given: dict[str, Any]) -> None:
    """`mri train`: images, or undersampled k-space -> prior with card."""

    def on_images(config: MRITrainingConfig) -> tuple[Source, Callable[[Trainer], Card]]:
        source, train, held_out = patch_source(data, config.data)
        return source, lambda trainer: mri_card(config, trainer, train, held_out)

    def on_kspace(config: KSpaceTrainingConfig) -> tuple[Source, Callable[[Trainer], Card]]:
        return kspace_source(data, config)

    if from_kspace:
        train_prior(given, KSpaceTrainingConfig, on_kspace, RoundTrainer)
    else:
        train_prior(given, MRITrainingConfig, on_images)
