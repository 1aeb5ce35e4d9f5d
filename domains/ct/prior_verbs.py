"""What `ct train` and `ct calibrate` do: data in, a prior out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from domains.ct.calibrate import CalibrationConfig, calibrated
from domains.ct.pipeline import load_ct_prior
from domains.ct.training import CTTrainingConfig, ct_card, patch_source
from suite.config import load_config
from suite.prior import Card
from suite.progress import progress
from suite.records import emit
from suite.train_verb import new_prior, train_prior
from suite.training import Source, Trainer


def train_verb(data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`ct train`: images -> prior with card."""

    def prepare(config: CTTrainingConfig) -> tuple[Source, Callable[[Trainer], Card]]:
        source, train, held_out = patch_source(data, config.data)
        return source, lambda trainer: ct_card(config, trainer, train, held_out)

    train_prior(given, CTTrainingConfig, prepare)


def calibrate_verb(prior: Path, data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`ct calibrate`: prior and validation data -> prior with calibration."""
    output = new_prior(given)
    config = load_config(CalibrationConfig, given["config"], given["overrides"], {})
    source = load_ct_prior(prior, torch.device("cpu"))
    with progress("Describing pictures", None, quiet=given["quiet"]) as update:
        result = calibrated(source, data, config, update)
    output.parent.mkdir(parents=True, exist_ok=True)
    result.save(output)
    told = result.card.calibration
    if not emit({"prior": str(output), "calibration": told}, given["json_to"]) and not given["quiet"]:
        found = told.get("intervals")
        click.echo(f"{output}: " + (f"intervals scaled by {found['scale']}" if found else "no intervals"))
