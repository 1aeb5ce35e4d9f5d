"""The verbs of the speech domain. Torch is imported inside them, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from suite.domain import Domain, Part
from suite.options import MainOptions, VerbGroup, common_options, main_options

_PATH = click.Path(path_type=Path)


@click.group(cls=VerbGroup)
def speech() -> None:
    """Speech: remove noise from recordings, and say how far to trust the result."""


@speech.command()
@click.argument("path", type=_PATH)
@common_options("json_to")
def info(path: Path, json_to: str | None) -> None:
    """What is in an audio file, or in the audio files of a folder."""
    from domains.speech.data import describe
    from suite.records import emit

    facts = describe(path)
    if not emit(facts, json_to):
        for row in facts.get("files", [facts]):
            for name, value in row.items():
                click.echo(f"{name:24} {value}")


@speech.command()
@click.argument("clean", type=_PATH)
@click.option("--noise", type=_PATH, metavar="FILE", help="A noise to add, repeated where it is shorter.")
@click.option("--rir", type=_PATH, metavar="FILE", help="A room response to convolve with; its first sample is time 0.")
@click.option("--snr", type=float, default=5.0, show_default=True, metavar="DB", help="Speech over noise energy.")
@common_options("output", "seed", "overwrite", "quiet", "json_to")
def simulate(clean: Path, **given: Any) -> None:
    """Put clean speech into noise, a room, or both."""
    from domains.speech.verbs import simulate_verb

    simulate_verb(clean, given)


@speech.command()
@click.argument("path", type=_PATH)
@click.option("--rir", type=_PATH, metavar="FILE", help="The room response; the dry source is estimated.")
@click.option("--bandwidth", type=float, metavar="HZ", help="Nothing above HZ was kept.")
@click.option("--gaps", type=_PATH, metavar="FILE.csv", help="Lost stretches, lines start,end in seconds.")
@click.option("--clip", type=float, metavar="LEVEL", help="Clipped at LEVEL (full scale is 1).")
@click.option("--blind-reverb", is_flag=True, default=None, help="Made in an unknown room, which is estimated too.")
@click.option(
    "--noise-db", type=float, metavar="DB", help="Noise over the recording's level, with those five (estimated)."
)
@click.option("--removed", is_flag=True, default=None, help="Also write what was taken out, in removed/.")
@main_options
def enhance(path: Path, options: MainOptions, **known: Any) -> None:
    """Enhance an audio file, or the audio files of a folder (WAV, FLAC, Ogg).

    Where a degradation is known (--rir, --bandwidth, --gaps, --clip) or a room is to be found (--blind-reverb) the method is
    posterior, else bridge; predict, storm and sgmse are others.
    """
    from domains.speech.verbs import enhance_verb

    enhance_verb(path, options, known)


@speech.command()
@click.argument("result", type=_PATH)
@click.option("--reference", type=_PATH, required=True, metavar="CLEAN", help="The clean speech: a file, or a folder.")
@click.option("--noisy", type=_PATH, metavar="NOISY", help="The recording before: adds SI-SIR and SI-SAR.")
@click.option("--rir", type=_PATH, metavar="FILE", help="The room response: adds its DRR and that of what is left.")
@click.option("--dnsmos", type=_PATH, metavar="FILE.onnx", help="The model sig_bak_ovr.onnx: adds DNSMOS P.835.")
@common_options("json_to")
def evaluate(result: Path, reference: Path, json_to: str | None, **given: Any) -> None:
    """Compare a result (folder or file) with the clean speech: SI-SDR, ESTOI, PESQ, and more."""
    from domains.speech.verbs import evaluate_verb

    evaluate_verb(result, reference, json_to, **given)


@speech.command()
@click.option(
    "--data", type=_PATH, multiple=True, required=True, metavar="DIR", help="Folder with clean/, noise/ and rir/."
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint beside the output.")
@click.option("--minutes", type=float, metavar="M", help="Stop after M minutes; --resume goes on.")
@common_options("output", "device", "config", "overrides", "seed", "overwrite", "quiet", "json_to")
def train(data: tuple[Path, ...], **given: Any) -> None:
    """Train a network on your own clean speech and noise, mixed on the fly and split by speaker and noise."""
    from domains.speech.training_verb import train_verb

    train_verb(data, given)


def demo(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """Enhance a simulated noisy voice, as no recording ships with a dependency."""
    from domains.speech.verbs import demo_run

    return demo_run(output, overwrite=overwrite, quiet=quiet)


def is_input(path: Path) -> bool:
    """An audio file by its name."""
    return path.is_file() and path.suffix.lower() in (
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".aiff",
        ".aif",
        ".w64",
        ".au",
    )


DOMAIN = Domain(
    name="speech",
    help="Speech enhancement: noisy recordings to clean speech.",
    group=speech,
    demo=demo,
    weights=Path(__file__).parent / "weights",
    is_input=is_input,
    optional=(
        Part("pesq", "the PESQ metric", "pesq"),
        Part("onnxruntime", "the DNSMOS metric", "dnsmos"),
        Part("torchaudio", "resampling by torchaudio", "torchaudio"),
    ),
)
