"""The verbs of the CT domain. Torch and numba are imported inside them, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from suite.domain import Domain, Part
from suite.options import MainOptions, VerbGroup, common_options, main_options

_PATH = click.Path(path_type=Path)


@click.group(cls=VerbGroup)
def ct() -> None:
    """X-ray CT: reconstruct scans with few views or little dose, and say how far to trust the result."""


@ct.command()
@click.argument("path", type=_PATH)
@common_options("json_to")
def info(path: Path, json_to: str | None) -> None:
    """What is in a scan or image file."""
    from domains.ct.data import describe
    from suite.records import emit

    facts = describe(path)
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
_size_option = click.option("--size", type=click.IntRange(min=8), metavar="N", help="Reduce slices to N x N pixels.")
_series_option = click.option("--series", metavar="UID", help="Which series of a DICOM folder.")


@ct.command()
@click.argument("volume", type=_PATH)
@click.option("--views", type=click.IntRange(min=1), required=True, metavar="N", help="View angles.")
@click.option(
    "--arc", type=click.FloatRange(0, 360, min_open=True), metavar="DEG", help="Arc they cover (180; fan, cone: 360)."
)
@click.option("--geometry", type=click.Choice(["parallel", "fan", "cone"]), default="parallel", show_default=True)
@click.option("--photons", type=float, default=1e5, show_default=True, metavar="I0", help="Photons per ray.")
@click.option("--electronic", type=float, default=0.0, show_default=True, metavar="S", help="Read-out noise, photons.")
@_slices_option
@_size_option
@_series_option
@common_options("output", "seed", "overwrite", "quiet", "json_to")
def simulate(volume: Path, **given: Any) -> None:
    """Simulate a noisy scan of a reference volume in HU."""
    from domains.ct.verbs import simulate_verb

    simulate_verb(volume, given)


@ct.command()
@click.argument("scan", type=_PATH)
@click.option("--dicom", is_flag=True, help="Write a DICOM series also when the scan carries no header.")
@main_options
def reconstruct(scan: Path, dicom: bool, options: MainOptions) -> None:
    """Reconstruct a scan (HDF5, .mat, DICOM-CT-PD)."""
    from domains.ct.verbs import reconstruct_verb

    reconstruct_verb(scan, dicom, options)


@ct.command()
@click.argument("series", type=_PATH)
@click.option("--series", "uid", metavar="UID", help="Which series of a DICOM folder.")
@main_options
def denoise(series: Path, uid: str | None, options: MainOptions) -> None:
    """Take the noise out of an image series (DICOM, NIfTI) that has no raw data."""
    from domains.ct.denoise_verb import denoise_verb

    denoise_verb(series, uid, options)


@ct.command()
@click.argument("result", type=_PATH)
@click.option(
    "--reference", type=_PATH, required=True, metavar="VOLUME", help="The truth: NIfTI, MetaImage or DICOM, in HU."
)
@_slices_option
@_size_option
@_series_option
@common_options("json_to")
def evaluate(
    result: Path, reference: Path, slices: slice | None, size: int | None, series: str | None, json_to: str | None
) -> None:
    """Compare a result (folder or image) with its reference, in HU inside the body."""
    from domains.ct.verbs import evaluate_verb

    evaluate_verb(result, reference, slices, size, series, json_to)


@ct.command()
@click.argument("volume", type=_PATH)
@_slices_option
@_series_option
@main_options
def audit(volume: Path, slices: slice | None, series: str | None, options: MainOptions) -> None:
    """Plant lesions in a volume in HU, scan and reconstruct it, and tell how well they are seen, beside FBP and TV."""
    from domains.ct.audit_verb import audit_verb

    audit_verb(volume, slices, series, options)


@ct.command()
@click.option("--data", type=_PATH, multiple=True, required=True, metavar="DIR", help="Images to train on; repeatable.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint beside the output.")
@click.option("--minutes", type=float, metavar="M", help="Stop after M minutes; --resume goes on.")
@common_options("output", "device", "config", "overrides", "seed", "overwrite", "quiet", "json_to")
def train(data: tuple[Path, ...], **given: Any) -> None:
    """Train a prior on your own images, split by subject."""
    from domains.ct.prior_verbs import train_verb

    train_verb(data, given)


@ct.command()
@click.argument("prior", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", type=_PATH, multiple=True, required=True, metavar="DIR", help="The data of the training.")
@common_options("output", "config", "overrides", "overwrite", "quiet", "json_to")
def calibrate(prior: Path, data: tuple[Path, ...], **given: Any) -> None:
    """Store in a prior which pictures it knows and how wide its 90 % intervals must be, from held-out subjects."""
    from domains.ct.prior_verbs import calibrate_verb

    calibrate_verb(prior, data, given)


def demo(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """Reconstruct the CT slice that comes with pydicom from a simulated sparse-view scan."""
    from domains.ct.verbs import demo_run

    return demo_run(output, overwrite=overwrite, quiet=quiet)


def is_input(path: Path) -> bool:
    """A scan or image file by its name, or DICOM by its first bytes, as a file or a folder of files."""
    names = (".h5", ".hdf5", ".hdf", ".nxs", ".nx", ".mat", ".nii", ".nii.gz", ".mha", ".mhd", ".dcm", ".ima")

    def dicom(file: Path) -> bool:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"

    if path.is_dir():
        return any(file.is_file() and dicom(file) for file in path.iterdir())
    return path.name.lower().endswith(names) or dicom(path)


DOMAIN = Domain(
    name="ct",
    help="X-ray CT reconstruction from few views or little dose.",
    group=ct,
    demo=demo,
    weights=Path(__file__).parent / "weights",
    is_input=is_input,
    optional=(
        Part("gdcm", "JPEG-compressed DICOM", "dicom"),
        Part("openjpeg", "JPEG 2000 DICOM", "dicom"),
        Part("jpeg_ls", "JPEG-LS DICOM", "dicom"),
    ),
)
