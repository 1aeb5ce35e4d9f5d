"""What `speech train` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from domains.speech.training import SpeechTrainingConfig, mixtures, speech_card
from suite.prior import Card
from suite.train_verb import train_prior
from suite.training import Source, Trainer


def train_verb(data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`speech train`: folders of clean speech and noise -> prior with card."""

    def prepare(config: SpeechTrainingConfig) -> tuple[Source, Callable[[Trainer], Card]]:
        source = mixtures(data, config)
        return source, lambda trainer: speech_card(config, trainer, source)

    train_prior(given, SpeechTrainingConfig, prepare)
