"""`train`, the same in every domain that trains a prior: settings and data in, a prior with its card out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from suite.config import load_config
from suite.errors import InputError
from suite.prior import Card, Prior
from suite.progress import progress
from suite.records import emit
from suite.run import resolve_device
from suite.training import Source, Trainer, TrainingConfig

C = TypeVar("C", bound=TrainingConfig)


def new_prior(given: dict[str, Any]) -> Path:
    """Where a prior is to be written, from the options of the command line.

    Raises:
        InputError: the name is not that of a prior, or taken.
    """
    output: Path = given["output"]
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: a prior is written as .safetensors; choose such a name for -o")
    if output.exists() and not given["overwrite"]:
        raise InputError(f"{output} already exists; add --overwrite or choose another -o")
    return output


def train_prior(
    given: dict[str, Any],
    model: type[C],
    prepare: Callable[[C], tuple[Source, Callable[[Trainer], Card]]],
    trained_by: Callable[..., Trainer] = Trainer,
) -> None:
    """Train as the options say, write the prior, and tell.

    Args:
        given: the options `output`, `config`, `overrides`, `seed`, `device`, `resume`, `minutes`, `overwrite`, `quiet`, `json_to`.
        model: the domain's training settings.
        prepare: reads the data; returns the source and what makes the card of a finished training.
        trained_by: the trainer, where a domain has one of its own.
    """
    output = new_prior(given)
    options = {} if given["seed"] is None else {"seed": given["seed"]}
    config = load_config(model, given["config"], given["overrides"], options)
    device = resolve_device(given["device"] or "auto")
    source, card_of = prepare(config)
    output.parent.mkdir(parents=True, exist_ok=True)
    trainer = trained_by(config, source, output, device)
    if given["resume"]:
        trainer.resume()
    with progress("Training", config.steps, quiet=given["quiet"]) as update:
        trainer.run(lambda row: update(row["step"], text=f"loss {row['loss']:.4f}"), given["minutes"])
    card = card_of(trainer)
    Prior(trainer.average, card).save(output)
    if not emit({"prior": str(output), "card": card.model_dump()}, given["json_to"]) and not given["quiet"]:
        click.echo(f"{output}: {trainer.step} steps, validation {trainer.history[-1]['validation_rmse']}")
