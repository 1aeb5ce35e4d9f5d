"""`hyperspectral train`: scenes -> prior with card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from domains.hyperspectral.training import HyperspectralTrainingConfig, hyperspectral_card, patch_source
from suite.prior import Card
from suite.train_verb import train_prior
from suite.training import Source, Trainer


def train_verb(data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """Train, and write the prior with its card."""

    def prepare(config: HyperspectralTrainingConfig) -> tuple[Source, Callable[[Trainer], Card]]:
        source, train, held_out = patch_source(data, config.data, config.seed)
        return source, lambda trainer: hyperspectral_card(config, trainer, train, held_out)

    train_prior(given, HyperspectralTrainingConfig, prepare)
