"""What `speech train` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from domains.speech.training import SpeechTrainingConfig, mixtures, speech_card
from suite.config import load_config
from suite.errors import InputError
from suite.prior import Prior
from suite.progress import progress
from suite.records import emit
from suite.run import resolve_device
from suite.training import Trainer


def train_verb(data: tuple[Path, ...], given: dict[str, Any]) -> None:
    """`speech train`: folders of clean speech and noise -> prior with card."""
    output: Path = given["output"]
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: a prior is written as .safetensors; choose such a name for -o")
    if output.exists() and not given["overwrite"]:
        raise InputError(f"{output} already exists; add --overwrite or choose another -o")
    options = {} if given["seed"] is None else {"seed": given["seed"]}
    config = load_config(SpeechTrainingConfig, given["config"], given["overrides"], options)
    device = resolve_device(given["device"] or "auto")
    source = mixtures(data, config)
    output.parent.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, source, output, device)
    if given["resume"]:
        trainer.resume()
    with progress("Training", config.steps, quiet=given["quiet"]) as update:
        trainer.run(lambda row: update(row["step"], text=f"loss {row['loss']:.4f}"), given["minutes"])
    card = speech_card(config, trainer, source)
    Prior(trainer.average, card).save(output)
    if not emit({"prior": str(output), "card": card.model_dump()}, given["json_to"]) and not given["quiet"]:
        click.echo(f"{output}: {trainer.step} steps, validation {trainer.history[-1]['validation_rmse']}")
