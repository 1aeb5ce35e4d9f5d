"""The verbs of the hyperspectral domain. Torch is imported inside them, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from suite.domain import Domain, Part
from suite.options import MainOptions, VerbGroup, common_options, main_options

_PATH = click.Path(path_type=Path)
CASES = ("gaussian", "noniid", "stripe", "deadline", "impulse", "mixture", "missing", "lowres")


@click.group(cls=VerbGroup)
def hyperspectral() -> None:
    """Hyperspectral cubes: remove noise, stripes, dead lines and impulses, and say how far to trust the result."""


@hyperspectral.command()
@click.argument("path", type=_PATH)
@common_options("key", "json_to")
def info(path: Path, key: str | None, json_to: str | None) -> None:
    """What is in a hyperspectral file."""
    from domains.hyperspectral.data import describe
    from suite.records import emit

    facts = describe(path, key=key)
    if not emit(facts, json_to):
        for name, value in facts.items():
            click.echo(f"{name:24} {value}")


@hyperspectral.command()
@click.argument("cube", type=_PATH)
@click.option("--case", type=click.Choice(CASES), default="gaussian", show_default=True)
@click.option(
    "--sigma",
    type=float,
    default=50.0,
    show_default=True,
    help="Of the cases gaussian, missing and lowres, in 1/255 of a band's range.",
)
@click.option("--keep", type=float, default=0.3, show_default=True, help="Of missing: share of the values that stay.")
@click.option("--factor", type=int, default=2, show_default=True, help="Of lowres: old pixels per new one, either way.")
@common_options("output", "seed", "key", "overwrite", "quiet", "json_to")
def simulate(cube: Path, **given: Any) -> None:
    """Add one of the standard noise cases to a clean cube."""
    from domains.hyperspectral.verbs import simulate_verb

    simulate_verb(cube, given)


@hyperspectral.command()
@click.argument("cube", type=_PATH)
@click.option(
    "--repair-bad", is_flag=True, help="Also restore bands that the file flags as bad (as far as they hold values)."
)
@click.option("--fill", is_flag=True, help="Also give pixels without any data an estimate.")
@main_options
def denoise(cube: Path, repair_bad: bool, fill: bool, options: MainOptions) -> None:
    """Denoise a cube (ENVI, MATLAB, NetCDF, GeoTIFF, PRISMA, NumPy); the result comes in the same format.

    Methods: subspace (default), hir_diff, finch, dds2m, nlm, svd.
    """
    from domains.hyperspectral.verbs import denoise_verb

    denoise_verb(cube, repair_bad, fill, options)


@hyperspectral.command()
@click.argument("cube", type=_PATH)
@click.option("--factor", type=int, metavar="N", help="New pixels per old one in either direction [default: 2].")
@main_options
def superresolve(cube: Path, factor: int | None, options: MainOptions) -> None:
    """Denoise a cube and give it smaller pixels. Methods: subspace (default), hir_diff, dds2m, bicubic."""
    from domains.hyperspectral.superresolution import superresolve_verb

    superresolve_verb(cube, factor, options)


@hyperspectral.command()
@click.argument("result", type=_PATH)
@click.option("--reference", type=_PATH, metavar="CUBE", help="The clean cube.")
@click.option("--input", "source", type=_PATH, metavar="CUBE", help="Where there is no clean cube: the noisy one.")
@click.option(
    "--map", "anomalies", metavar="NAME", help="With --input: its variable that marks anomalies (RX detector)."
)
@common_options("key", "json_to")
def evaluate(
    result: Path,
    reference: Path | None,
    source: Path | None,
    anomalies: str | None,
    key: str | None,
    json_to: str | None,
) -> None:
    """Judge a result (folder or cube): by a clean reference (PSNR, SSIM, spectral angle, ERGAS), or by its input alone."""
    from domains.hyperspectral.evaluate_verb import evaluate_verb

    evaluate_verb(result, reference, source, anomalies, key, json_to)


@hyperspectral.command()
@click.option("--data", type=_PATH, multiple=True, required=True, metavar="DIR", help="Clean cubes; repeatable.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint beside the output.")
@click.option("--minutes", type=float, metavar="M", help="Stop after M minutes; --resume goes on.")
@common_options("output", "device", "config", "overrides", "seed", "overwrite", "quiet", "json_to")
def train(data: tuple[Path, ...], **given: Any) -> None:
    """Train the spatial prior on your own scenes, split by scene."""
    from domains.hyperspectral.training_verb import train_verb

    train_verb(data, given)


@hyperspectral.command()
@click.argument("prior", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", type=_PATH, multiple=True, required=True, metavar="DIR", help="The data of the training.")
@common_options("output", "config", "overrides", "overwrite", "quiet", "json_to")
def calibrate(prior: Path, data: tuple[Path, ...], **given: Any) -> None:
    """Store in a prior how wide the 90 % intervals of its draws must be, from scenes it was not trained on."""
    from domains.hyperspectral.training_verb import calibrate_verb

    calibrate_verb(prior, data, given)


def demo(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """Denoise a simulated scene, as no hyperspectral cube ships with a dependency."""
    from domains.hyperspectral.verbs import demo_run

    return demo_run(output, overwrite=overwrite, quiet=quiet)


def is_input(path: Path) -> bool:
    """A cube by its name; of ENVI's pair the header."""
    names = (".hdr", ".mat", ".nc", ".nc4", ".tif", ".tiff", ".npz", ".npy", ".he5")
    return path.is_file() and path.name.lower().endswith(names)


DOMAIN = Domain(
    name="hyperspectral",
    help="Hyperspectral denoising: noise, stripes, dead lines, impulses.",
    group=hyperspectral,
    demo=demo,
    weights=Path(__file__).parent / "weights",
    is_input=is_input,
    optional=(Part("rasterio", "GeoTIFF", "geotiff"),),
)
