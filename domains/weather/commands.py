"""The verbs of the weather domain. Torch and xarray are imported inside them, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from suite.domain import Domain, Part
from suite.options import MainOptions, VerbGroup, common_options, main_options

_PATH = click.Path(path_type=Path)
_SYSTEMS = ("lorenz96", "lorenz96-two-level", "gaussian", "quasigeostrophic")


@click.group(cls=VerbGroup)
def weather() -> None:
    """Weather ensembles: from a few members to many, with the usual baselines beside them."""


@weather.command()
@click.argument("path", type=_PATH)
@common_options("key", "json_to")
def info(path: Path, key: str | None, json_to: str | None) -> None:
    """What is in a forecast file or a model."""
    from domains.weather.verbs import info_verb

    info_verb(path, key, json_to)


@weather.command()
@click.argument("system", type=click.Choice(_SYSTEMS))
@click.option("--dates", type=click.IntRange(min=1), default=200, show_default=True, metavar="N")
@click.option("--members", type=click.IntRange(min=1), default=8, show_default=True, metavar="N")
@click.option("--truth", type=_PATH, metavar="FILE", help="Write the truth (gaussian: a further member) here.")
@common_options("output", "seed", "overwrite", "quiet", "json_to")
def simulate(system: str, **given: Any) -> None:
    """Make an ensemble of a test-bed whose predictive law is known."""
    from domains.weather.verbs import simulate_verb

    simulate_verb(system, given)


@weather.command()
@click.argument("ensemble", type=_PATH)
@click.option("--truth", type=_PATH, metavar="FILE", help="Observed fields: then the truth is generated, not members.")
@click.option("--truth-key", metavar="NAME", help="Which variable of the truth's file.")
@click.option("--minutes", type=float, metavar="M", help="Wall budget of the whole fit.")
@click.option("--iterations", type=click.IntRange(min=1), metavar="N", help="Training steps at most.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint beside the output.")
@common_options("output", "device", "config", "overrides", "key", "seed", "overwrite", "quiet", "json_to")
def fit(ensemble: Path, **given: Any) -> None:
    """Fit a model to an archive of ensemble forecasts (number, time, ...)."""
    from domains.weather.verbs import fit_verb

    fit_verb(ensemble, given)


def _range(_ctx: click.Context, _param: click.Parameter, value: str | None) -> range | None:
    if value is None:
        return None
    first, colon, last = value.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise click.BadParameter(f"'{value}' is not of the form A:B with 0 <= A < B")
    return range(int(first), int(last))


@weather.command()
@click.argument("seeds", type=_PATH)
@click.option("--model", metavar="MODEL", help="A model file, or the name of a shipped one; raw needs none.")
@click.option("--members", type=click.IntRange(min=1), metavar="N", help="Members to make (default 50).")
@click.option("--number", callback=_range, metavar="A:B", help="Only the members A to B-1 of them.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="At once.")
@click.option("--engine", type=click.Choice(["local", "dask"]), default="local", show_default=True,
              help="This process, or Dask workers, for dates and members.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Dask workers (default: one for each core).")
@click.option("--scheduler", metavar="ADDRESS", help="An existing Dask scheduler, tcp://HOST:PORT.")
@main_options
def generate(
    seeds: Path,
    model: str | None,
    members: int | None,
    number: range | None,
    batch: int,
    engine: str,
    workers: int | None,
    scheduler: str | None,
    options: MainOptions,
) -> None:
    """Make many members from a few: diffusion, or one of the baselines with --method."""
    from domains.weather.generation import Workers
    from domains.weather.verbs import generate_verb

    generate_verb(seeds, model, members, number, batch, Workers(engine, workers, scheduler), options)


@weather.command()
@click.argument("forecast", type=_PATH)
@click.option("--truth", type=_PATH, required=True, metavar="FILE", help="What happened, on the same dates and grid.")
@click.option("--truth-key", metavar="NAME", help="Which variable of the truth's file.")
@click.option("--climatology", type=_PATH, metavar="FILE", help="Past fields for quantiles and anomalies.")
@click.option("--report", "report_to", type=_PATH, metavar="FILE", help="Write an HTML page with the diagrams here.")
@common_options("key", "quiet", "json_to")
def evaluate(forecast: Path, **given: Any) -> None:
    """Verify an ensemble: CRPS, energy, variogram, spread and skill, ranks, Brier scores."""
    from domains.weather.verbs import evaluate_verb

    evaluate_verb(forecast, given)


def demo(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """Two members of a simulated Lorenz-96 ensemble to fifty, as no real forecast ships with a dependency."""
    from domains.weather.verbs import demo_run

    return demo_run(output, overwrite=overwrite, quiet=quiet)


def is_input(path: Path) -> bool:
    """A forecast file by its name, or a Zarr store."""
    names = (".nc", ".nc4", ".grib", ".grib1", ".grib2", ".grb", ".grb1", ".grb2", ".npz")
    return path.suffix.lower() == ".zarr" if path.is_dir() else path.name.lower().endswith(names)


DOMAIN = Domain(
    name="weather",
    help="Weather ensembles: from a few members to many.",
    group=weather,
    demo=demo,
    weights=Path(__file__).parent / "weights",
    is_input=is_input,
    optional=(
        Part("cfgrib", "GRIB files", "grib"),
        Part("eccodes", "GRIB files", "grib"),
    ),
)
