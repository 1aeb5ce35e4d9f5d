"""The verbs of the MRI domain. Torch is imported inside them, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from suite.domain import Domain, Part
from suite.options import MainOptions, VerbGroup, common_options, main_options

_PATH = click.Path(path_type=Path)
_MASKS = ("uniform1d", "random1d", "gaussian1d", "gaussian2d", "poisson", "radial")


@click.group(cls=VerbGroup)
def mri() -> None:
    """MRI: reconstruct undersampled k-space, and say how far to trust the result."""


@mri.command()
@click.argument("path", type=_PATH)
@common_options("key", "json_to")
def info(path: Path, key: str | None, json_to: str | None) -> None:
    """What is in a raw-data or image file."""
    from domains.mri.data import describe
    from suite.records import emit

    facts = describe(path, key=key)
    if not emit(facts, json_to):
        for name, value in facts.items():
            click.echo(f"{name:24} {value}")


def _slices(_ctx: click.Context, _param: click.Parameter, value: str | None) -> slice | None:
    if value is None:
        return None
    first, colon, last = value.partition(":")
    try:
        start, stop = (int(word) if word else None for word in (first, last))
    except ValueError:
        start, stop, colon = None, None, ""
    if not colon or (start is not None and start < 0) or (stop is not None and stop <= (start or 0)):
        raise click.BadParameter(f"'{value}' is not of the form A:B with 0 <= A < B")
    return slice(start, stop)


_slices_option = click.option("--slices", callback=_slices, metavar="A:B", help="Slices A to B-1 only.")
_series_option = click.option("--series", metavar="UID", help="Which series of a DICOM folder.")


@mri.command()
@click.argument("volume", type=_PATH)
@click.option("--acceleration", type=float, required=True, metavar="R", help="All points over acquired points.")
@click.option("--mask", type=click.Choice(_MASKS), default="random1d", show_default=True)
@click.option("--coils", type=click.IntRange(1, 128), default=8, show_default=True, metavar="N")
@click.option(
    "--acs", type=float, metavar="FRACTION", help="Fully sampled centre (0.08 up to 6x, 0.04 above; 2D: 0.1)."
)
@click.option("--snr", type=float, default=30.0, show_default=True, metavar="DB", help="Over the full k-space.")
@_slices_option
@_series_option
@common_options("output", "seed", "overwrite", "quiet", "json_to")
def simulate(volume: Path, **given: Any) -> None:
    """Simulate an undersampled multi-coil scan of a magnitude volume, in fastMRI's layout."""
    from domains.mri.verbs import simulate_verb

    simulate_verb(volume, given)


@mri.command()
@click.argument("kspace", type=_PATH)
@click.option("--dicom", is_flag=True, help="Also write DICOM MR series.")
@click.option("--tune", is_flag=True, help="Choose dds's settings for this scan, by samples held back (slower).")
@main_options
def reconstruct(kspace: Path, dicom: bool, tune: bool, options: MainOptions) -> None:
    """Reconstruct raw k-space (fastMRI, ISMRMRD, BART, twix, NumPy, MATLAB)."""
    from domains.mri.verbs import reconstruct_verb

    reconstruct_verb(kspace, dicom, tune, options)


@mri.command("next-lines")
@click.argument("kspace", type=_PATH)
@click.option(
    "--budget", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="Lines to propose."
)
@click.option("--error", type=click.FloatRange(0, 1, min_open=True), metavar="E", help="Stop at this relative error.")
@click.option("--particles", type=click.IntRange(min=2), default=8, show_default=True, metavar="N")
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Evaluations per particle.")
@common_options("seed", "device", "prior", "key", "quiet", "json_to")
def next_lines(kspace: Path, **given: Any) -> None:
    """Which phase-encoding lines to acquire next, and whether those acquired are enough."""
    from domains.mri.verbs import next_lines_verb

    next_lines_verb(kspace, given)


@mri.command()
@click.argument("result", type=_PATH)
@click.option(
    "--reference", type=_PATH, required=True, metavar="VOLUME", help="The truth: NIfTI, DICOM, or fastMRI's own."
)
@_slices_option
@_series_option
@click.option("--convention", type=click.Choice(["fastmri", "dds", "slice"]), default="fastmri", show_default=True)
@common_options("json_to")
def evaluate(
    result: Path, reference: Path, slices: slice | None, series: str | None, convention: str, json_to: str | None
) -> None:
    """Compare a result (folder or image) with its reference: NMSE, PSNR, SSIM of the magnitude."""
    from domains.mri.verbs import evaluate_verb

    evaluate_verb(result, reference, slices, series, convention, json_to)


@mri.command()
@click.option("--data", type=_PATH, multiple=True, required=True, metavar="DIR", help="Images to train on; repeatable.")
@click.option("--from-kspace", is_flag=True, help="The data are undersampled k-space, and no clean image is needed.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint beside the output.")
@click.option("--minutes", type=float, metavar="M", help="Stop after M minutes; --resume goes on.")
@common_options("output", "device", "config", "overrides", "seed", "overwrite", "quiet", "json_to")
def train(data: tuple[Path, ...], from_kspace: bool, **given: Any) -> None:
    """Train a prior on your own magnitude images, or on undersampled k-space alone, split by person."""
    from domains.mri.training_verb import train_verb

    train_verb(data, from_kspace, given)


@mri.command()
@click.argument("prior", type=_PATH)
@click.option("--data", type=_PATH, multiple=True, required=True, metavar="DIR", help="The images of the training.")
@common_options("output", "config", "overrides", "overwrite", "quiet", "json_to")
def calibrate(prior: Path, data: tuple[Path, ...], **given: Any) -> None:
    """Store in a prior how wide its 90 % intervals must be, from simulated scans of held-out persons."""
    from domains.mri.calibrate import calibrate_verb

    calibrate_verb(prior, data, given)


def demo(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """Reconstruct a simulated scan of the Shepp-Logan phantom, as no real k-space ships with a dependency."""
    from domains.mri.verbs import demo_run

    return demo_run(output, overwrite=overwrite, quiet=quiet)


def is_input(path: Path) -> bool:
    """A k-space file by its name; of BART's pair the `.cfl`."""
    names = (".h5", ".hdf5", ".mrd", ".npy", ".mat", ".cfl", ".dat")
    return path.is_file() and path.name.lower().endswith(names)


DOMAIN = Domain(
    name="mri",
    help="MRI reconstruction from undersampled k-space.",
    group=mri,
    demo=demo,
    weights=Path(__file__).parent / "weights",
    is_input=is_input,
    optional=(
        Part("finufft", "radial and spiral trajectories, fast", "nufft"),
        Part("twixtools", "Siemens raw data", "twix"),
    ),
)
