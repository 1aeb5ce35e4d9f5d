"""What `ct train` and `ct calibrate` do: data in, a prior out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from domains.ct.calibrate import CalibrationConfig, calibrated
from domains.ct.pipeline import load_ct_prior
from domains.ct.training import CTTrainingConfig, ct_card, patch_source
from suite.config import load_config
from suite.errors import InputError
from suite.prior import Prior
from suite.progress import progress
from suite.records import emit
from suite.run import resolve_device
from suite.training import Trainer


def train_verb(data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`ct train`: images -> prior with card."""
    output = _new_prior(given)
    options = {} if given["seed"] is None else {"seed": given["seed"]}
    config = load_config(CTTrainingConfig, given["config"], given["overrides"], options)
    device = resolve_device(given["device"] or "auto")
    source, train, held_out = patch_source(data, config.data)
    output.parent.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, source, output, device)
    if given["resume"]:
        trainer.resume()
    with progress("Training", config.steps, quiet=given["quiet"]) as update:
        trainer.run(lambda row: update(row["step"], text=f"loss {row['loss']:.4f}"), given["minutes"])
    card = ct_card(config, trainer, train, held_out)
    Prior(trainer.average, card).save(output)
    if not emit({"prior": str(output), "card": card.model_dump()}, given["json_to"]) and not given["quiet"]:
        click.echo(f"{output}: {trainer.step} steps, validation {trainer.history[-1]['validation_rmse']}")


def calibrate_verb(prior: Path, data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`ct calibrate`: prior and validation data -> prior with calibration."""

    output = _new_prior(given)
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


def _new_prior(given: dict[str, Any]) -> Path:
    """Where a prior is to be written.

    Raises:
        InputError: the name is not that of a prior, or taken.
    """
    output: Path = given["output"]
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: a prior is written as .safetensors; choose such a name for -o")
    if output.exists() and not given["overwrite"]:
        raise InputError(f"{output} already exists; add --overwrite or choose another -o")
    return output
