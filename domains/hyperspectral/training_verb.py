"""`hyperspectral train` and `calibrate`: scenes -> prior with card, and how wide its intervals must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from domains.hyperspectral.calibrate import CalibrationConfig, calibrated
from domains.hyperspectral.joint_training import band_windows, joint_card
from domains.hyperspectral.pipeline import load_hyperspectral_prior
from domains.hyperspectral.training import HyperspectralTrainingConfig, hyperspectral_card, patch_source
from suite.config import load_config
from suite.prior import Card
from suite.progress import progress
from suite.records import emit
from suite.train_verb import new_prior, train_prior
from suite.training import Source, Trainer


def train_verb(data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """Train, and write the prior with its card: of eigen-images, or with a network of three dimensions of band windows."""

    def prepare(config: HyperspectralTrainingConfig) -> tuple[Source, Callable[[Trainer], Card]]:
        if config.network.dims == 3:
            windows, known, unseen = band_windows(data, config.data)
            return windows, lambda trainer: joint_card(config, trainer, known, unseen)
        source, train, held_out = patch_source(data, config.data, config.seed)
        return source, lambda trainer: hyperspectral_card(config, trainer, train, held_out)

    train_prior(given, HyperspectralTrainingConfig, prepare)


def calibrate_verb(prior: Path, data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """Prior and held-out scenes -> the same prior with the scale of its intervals in its card."""
    output = new_prior(given)
    config = load_config(CalibrationConfig, given["config"], given["overrides"], {})
    source = load_hyperspectral_prior(prior, torch.device("cpu"))
    assert source is not None
    with progress("Calibrating", None, quiet=given["quiet"]) as update:
        result = calibrated(source, data, config, update)
    output.parent.mkdir(parents=True, exist_ok=True)
    result.save(output)
    told = result.card.calibration
    if not emit({"prior": str(output), "calibration": told}, given["json_to"]) and not given["quiet"]:
        click.echo(f"{output}: intervals scaled by {told['intervals']['scale']}")
