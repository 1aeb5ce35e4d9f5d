"""What `ultrasound train` and `ultrasound calibrate` do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from domains.ultrasound.calibrate import CalibrationConfig, calibrated
from domains.ultrasound.grid import BLOCK
from domains.ultrasound.training import (
    UNITS,
    PictureTrainer,
    UltrasoundTrainingConfig,
    picture_source,
    trained_before,
    ultrasound_card,
)
from suite.config import load_config
from suite.prior import Card, load_prior
from suite.progress import progress
from suite.records import emit
from suite.train_verb import new_prior, train_prior
from suite.training import Source, Trainer


def train_verb(data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`ultrasound train`: cines -> prior with card."""

    def prepare(config: UltrasoundTrainingConfig) -> tuple[Source, Callable[[Trainer], Card]]:
        source, train, held_out = picture_source(data, config.kind, config.data)
        train = sorted({*train, *trained_before(config.start, held_out)})
        return source, lambda trainer: ultrasound_card(config, trainer, train, held_out)

    train_prior(given, UltrasoundTrainingConfig, prepare, PictureTrainer)


def calibrate_verb(prior: Path, data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`ultrasound calibrate`: restoration network and validation cines -> the same with intervals in its card."""
    output = new_prior(given)
    config = load_config(CalibrationConfig, given["config"], given["overrides"], {})
    source = load_prior(prior, torch.device("cpu"), unit=UNITS["restore"], channels=BLOCK**2)
    with progress("Drawing samples", None, quiet=given["quiet"]) as update:
        result = calibrated(source, data, config, update)
    output.parent.mkdir(parents=True, exist_ok=True)
    result.save(output)
    told = result.card.calibration["intervals"]
    if (
        not emit({"prior": str(output), "calibration": result.card.calibration}, given["json_to"])
        and not given["quiet"]
    ):
        click.echo(f"{output}: intervals scaled by {told['scale']}, floor {told['floor']} grey levels")
