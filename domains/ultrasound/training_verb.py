"""What `ultrasound train` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from domains.ultrasound.training import UltrasoundTrainingConfig, picture_source, ultrasound_card
from suite.prior import Card
from suite.train_verb import train_prior
from suite.training import Source, Trainer


def train_verb(data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`ultrasound train`: cines -> prior with card."""

    def prepare(config: UltrasoundTrainingConfig) -> tuple[Source, Callable[[Trainer], Card]]:
        source, train, held_out = picture_source(data, config.kind, config.data)
        return source, lambda trainer: ultrasound_card(config, trainer, train, held_out)

    train_prior(given, UltrasoundTrainingConfig, prepare)
