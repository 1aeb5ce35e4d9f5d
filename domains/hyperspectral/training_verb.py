"""`hyperspectral train`: scenes -> prior with card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from domains.hyperspectral.training import HyperspectralTrainingConfig, hyperspectral_card, patch_source
from suite.config import load_config
from suite.errors import InputError
from suite.prior import Prior
from suite.progress import progress
from suite.records import emit
from suite.run import resolve_device
from suite.training import Trainer


def train_verb(data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """Train, and write the prior with its card."""
    output: Path = given["output"]
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: a prior is written as .safetensors; choose such a name for -o")
    if output.exists() and not given["overwrite"]:
        raise InputError(f"{output} already exists; add --overwrite or choose another -o")
    options = {} if given["seed"] is None else {"seed": given["seed"]}
    config = load_config(HyperspectralTrainingConfig, given["config"], given["overrides"], options)
    device = resolve_device(given["device"] or "auto")
    source, train, held_out = patch_source(data, config.data, config.seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, source, output, device)
    if given["resume"]:
        trainer.resume()
    with progress("Training", config.steps, quiet=given["quiet"]) as update:
        trainer.run(lambda row: update(row["step"], text=f"loss {row['loss']:.4f}"), given["minutes"])
    card = hyperspectral_card(config, trainer, train, held_out)
    Prior(trainer.average, card).save(output)
    if not emit({"prior": str(output), "card": card.model_dump()}, given["json_to"]) and not given["quiet"]:
        click.echo(f"{output}: {trainer.step} steps, validation {trainer.history[-1]['validation_rmse']}")
