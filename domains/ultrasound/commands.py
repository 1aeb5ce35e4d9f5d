"""The verbs of the ultrasound domain. Torch is imported inside them, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from suite.domain import Domain
from suite.options import MainOptions, VerbGroup, common_options, main_options

_PATH = click.Path(path_type=Path)


@click.group(cls=VerbGroup)
def ultrasound() -> None:
    """Ultrasound: take haze off a cine, and show what was taken."""


@ultrasound.command()
@click.argument("path", type=_PATH)
@common_options("key", "json_to")
def info(path: Path, key: str | None, json_to: str | None) -> None:
    """What is in an ultrasound file."""
    from domains.ultrasound.data import describe
    from suite.records import emit

    facts = describe(path, key=key)
    if not emit(facts, json_to):
        for name, value in facts.items():
            click.echo(f"{name:24} {value}")


@ultrasound.command()
@click.argument("clean", type=_PATH)
@click.option(
    "--level", type=click.FloatRange(0, 10), metavar="X", help="Brightness of clutter (1), or RMS of multipath (0.2)."
)
@click.option(
    "--kind",
    type=click.Choice(["clutter", "multipath", "mixed"]),
    help="On the picture, in the echoes (default by the file), or of any shape.",
)
@common_options("output", "key", "seed", "overwrite", "quiet", "json_to")
def simulate(clean: Path, **given: Any) -> None:
    """Put haze on a clean cine; -o FILE.npz holds both."""
    from domains.ultrasound.verbs import simulate_verb

    simulate_verb(clean, given)


@ultrasound.command()
@click.argument("cine", type=_PATH)
@click.option("--strength", type=click.FloatRange(0, 10), metavar="G", help="How much of the haze to take off (1).")
@main_options
def dehaze(cine: Path, strength: float | None, options: MainOptions) -> None:
    """Take haze off a cine (DICOM, zea or PICMUS HDF5, UFF, MetaImage, MATLAB, Clarius, NumPy)."""
    from domains.ultrasound.verbs import dehaze_verb

    dehaze_verb(cine, strength, options)


@ultrasound.command()
@click.argument("result", type=_PATH)
@click.option("--reference", type=_PATH, metavar="CLEAN", help="The same cine without haze.")
@click.option("--input", type=_PATH, metavar="CINE", help="The cine before.")
@click.option("--regions", type=_PATH, metavar="MASKS", help="Labels: 255 tissue (A), 128 blood (B).")
@common_options("key", "json_to")
def evaluate(result: Path, **given: Any) -> None:
    """Figures of a result (folder or file) beside its truth or its input."""
    from domains.ultrasound.verbs import evaluate_verb

    evaluate_verb(result, given)


@ultrasound.command()
@click.option("--data", type=_PATH, multiple=True, required=True, metavar="DIR", help="Cines (.npz); repeatable.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint beside the output.")
@click.option("--minutes", type=float, metavar="M", help="Stop after M minutes; --resume goes on.")
@common_options("output", "device", "config", "overrides", "seed", "overwrite", "quiet", "json_to")
def train(data: tuple[Path, ...], **given: Any) -> None:
    """Train a network on your own cines, split by file."""
    from domains.ultrasound.training_verb import train_verb

    train_verb(data, given)


@ultrasound.command()
@click.argument("prior", type=_PATH)
@click.option("--data", type=_PATH, multiple=True, required=True, metavar="DIR", help="Cines (.npz); repeatable.")
@common_options("output", "config", "overrides", "overwrite", "quiet", "json_to")
def calibrate(prior: Path, data: tuple[Path, ...], **given: Any) -> None:
    """Measure on held-out cines how wide a restoration network's intervals must be."""
    from domains.ultrasound.training_verb import calibrate_verb

    calibrate_verb(prior, data, given)


def demo(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """Dehaze a simulated cine, as no real one ships with a dependency."""
    from domains.ultrasound.verbs import demo_run

    return demo_run(output, overwrite=overwrite, quiet=quiet)


def is_input(path: Path) -> bool:
    """A cine by its name, or DICOM by its first bytes."""
    from domains.ultrasound.data import SUFFIXES
    from domains.ultrasound.dicom import is_dicom

    return path.is_file() and (path.suffix.lower() in SUFFIXES or is_dicom(path))


DOMAIN = Domain(
    name="ultrasound",
    help="Ultrasound dehazing: take haze and clutter off cines.",
    group=ultrasound,
    demo=demo,
    weights=Path(__file__).parent / "weights",
    is_input=is_input,
)
