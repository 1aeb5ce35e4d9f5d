"""What the speech verbs do, from file to file."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from domains.speech.config import EnhanceConfig, Enhanced
from domains.speech.data import Audio, audio_files, open_audio, read_audio, write_audio
from domains.speech.dnsmos import Dnsmos
from domains.speech.guard import findings_of, removal
from domains.speech.informed import enhance_informed
from domains.speech.methods import Method, steps_of
from domains.speech.metrics import Metrics, direct_to_reverberant, evaluate, mean_of, remaining_reverberation
from domains.speech.mixing import fitted, reverberant, scaled_to
from domains.speech.output import report_of
from domains.speech.pipeline import (
    Restorer,
    choose_method,
    enhance_file,
    load_speech_prior,
)
from suite.config import load_config
from suite.errors import InputError
from suite.options import MainOptions, command_line
from suite.prior import Prior
from suite.progress import progress
from suite.records import emit, write_json
from suite.report import write_report
from suite.run import Run, generator, resolve_device, sha256_file


def simulate_verb(path: Path, given: dict[str, Any]) -> None:
    """`speech simulate`: clean speech -> noisy or reverberant file of the same kind."""
    output, seed = given["output"], given["seed"] or 0
    if (given["noise"] is None) == (given["rir"] is None) and given["noise"] is None:
        raise InputError("nothing to simulate: name a noise with --noise, a room response with --rir, or both")
    if not math.isfinite(given["snr"]):
        raise InputError(f"--snr {given['snr']}: a finite number is needed")
    inputs = [path, *(given[name] for name in ("noise", "rir") if given[name] is not None)]
    settings = {"snr": given["snr"], "seed": seed}
    with Run(
        output,
        domain="speech",
        config=settings,
        inputs=inputs,
        command=command_line(),
        seed=seed,
        as_file=True,
        overwrite=given["overwrite"],
    ) as run:
        audio = open_audio(path)
        clean, rate = read_audio(path)
        noisy = np.stack([_degraded(channel, rate, given, seed) for channel in clean.T], axis=1)
        limited = write_audio(run.output(output.name), noisy, _like(audio, output))
        if limited:
            run.warn(f"{limited} samples exceeded full scale and were limited; lower the speech or write floats.")
        run.extra["snr_db"] = None if given["noise"] is None else given["snr"]
    if not emit(run.record, given["json_to"]) and not given["quiet"]:
        click.echo(f"{output}: {audio.seconds:.2f} s, {audio.channels} channel(s) at {rate} Hz")
        for sentence in run.warnings:
            click.echo(f"Note: {sentence}")


def _like(audio: Audio, output: Path) -> Audio:
    """The kind of file that an output's name asks for: that of the input where the suffix is the same."""
    if output.suffix.lower() == audio.path.suffix.lower():
        return audio
    kinds = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
    if output.suffix.lower() not in kinds:
        raise InputError(f"{output}: the output is a .wav, .flac or .ogg file")
    container, subtype = kinds[output.suffix.lower()]
    if audio.subtype in ("PCM_24", "FLOAT", "DOUBLE") and container == "WAV":
        subtype = audio.subtype
    return Audio(audio.path, audio.rate, audio.frames, audio.channels, container, subtype, "FILE")


def _degraded(clean: np.ndarray, rate: int, given: Mapping[str, Any], seed: int) -> np.ndarray:
    """One channel in the room and the noise that were asked for; the noise starts where the seed says."""
    out = clean
    if given["rir"] is not None:
        out = reverberant(out, _first_channel(given["rir"], rate))
    if given["noise"] is not None:
        noise = _first_channel(given["noise"], rate)
        first = int(generator(seed, "noise").initial_seed() % len(noise))
        out = out + scaled_to(fitted(noise, len(out), first), out, given["snr"])
    return out


def _first_channel(path: Path, rate: int) -> np.ndarray:
    return read_audio(path, rate)[0][:, 0]


# --- enhance ----------------------------------------------------------------------------------------------------------


def enhance_verb(path: Path, options: MainOptions, known: Mapping[str, Any]) -> None:
    """`speech enhance`: audio file or folder -> result folder; `known` says what happened to the recordings."""
    given = options.given() | {name: value for name, value in known.items() if value is not None}
    config = load_config(EnhanceConfig, options.config, options.overrides, given)
    method = choose_method(config)
    steps = steps_of(method, config)
    device = resolve_device(config.device)
    files = flat_names(audio_files(path), path)
    with Run(
        options.output,
        domain="speech",
        config=config,
        inputs=[*files.values(), *(path for path in (config.rir, config.gaps) if path is not None)],
        command=options.command,
        device=device,
        seed=config.seed,
        method=method.name,
        overwrite=options.overwrite,
    ) as run:
        prior = load_speech_prior(config.prior, device)
        run.prior = {"name": prior.card.name, "sha256": prior.sha256}
        run.nfe = steps if method.name == "posterior" else method.plan(steps).evaluations
        averaged = config.samples > 1 and config.centre == "mean"
        run.estimator = "point" if not method.samples else "mean" if averaged else "sample"
        failed, doubts = _enhance_all(run, files, prior, method, config, options.quiet)
        misfits = [row["misfit_chi2"] for row in run.metrics.values() if row.get("misfit_chi2") is not None]
        run.misfit_chi2 = float(np.mean(misfits)) if misfits else None
        findings = findings_of(run, doubts)
        run.extra |= findings.record()
        if options.report:
            write_report(report_of(run, findings, files, failed), run.output("report.html"))
    if not emit(run.record, options.json_to) and not options.quiet:
        _tell(options.output, run.record)
    if failed:
        raise click.exceptions.Exit(1)


def flat_names(files: Sequence[Path], top: Path) -> dict[str, Path]:
    """Output name -> file.

    Raises:
        InputError: two files of different folders have the same name.
    """
    names: dict[str, Path] = {}
    for file in files:
        if file.name in names:
            raise InputError(
                f"{top}: holds two files named {file.name}, and the result is one flat folder; enhance their folders one by one"
            )
        names[file.name] = file
    return names


def _enhance_all(
    run: Run, files: Mapping[str, Path], prior: Prior, method: Method, config: EnhanceConfig, quiet: bool
) -> tuple[dict[str, str], list[str]]:
    """Every file; returns the reason for each that failed, and the doubts about the others.

    Raises:
        InputError: none could be read.
    """
    failed: dict[str, str] = {}
    doubts: list[str] = []
    with progress("Enhancing", len(files), quiet=quiet) as update:
        for number, (name, file) in enumerate(files.items(), 1):
            try:
                done = _enhance_one(run, name, file, prior, method, config)
            except InputError as error:
                if len(files) == 1:
                    raise
                failed[name] = str(error).replace(str(file), name)
            else:
                run.metrics[name] = done.metrics
                doubts += done.doubts
                for sentence in (*done.notes, *done.doubts):
                    run.warn(sentence)
            update(number, text=name)
    if len(failed) == len(files):
        raise InputError(f"none of the {len(files)} files could be read; the first: {next(iter(failed.values()))}")
    run.extra["failed"] = failed
    return failed, doubts


def _enhance_one(run: Run, name: str, file: Path, prior: Prior, method: Method, config: EnhanceConfig) -> Enhanced:
    """One file, or what an interrupted run had made of it."""
    folder = run.pieces()
    kept, told = folder / name, folder / f"{name}.json"
    informed = method.name == "posterior"
    beside = {"reference": config.wiener and not informed, "removed": config.removed}
    pieces = {f"{kind}/{name}": folder / f"{kind}-{name}" for kind, wanted in beside.items() if wanted}
    if not told.exists():
        audio, steps = open_audio(file), steps_of(method, config)
        digest = sha256_file(file)
        if informed:
            done = enhance_informed(audio, kept, prior, digest, config, steps, run.clock)
        else:
            clock, plan = (lambda: run.clock("network")), method.plan(steps)
            restorer = Restorer(prior, plan, config.seed, digest, config.samples, config.precision, clock)
            done = enhance_file(audio, kept, pieces.get(f"reference/{name}"), restorer, config, run.clock)
        judged = removal(audio, kept, pieces.get(f"removed/{name}"), judge=not informed)
        done = Enhanced(done.metrics | judged.metrics, done.notes, done.doubts + judged.doubts)
        write_json(asdict(done), told)
    for output, piece in {name: kept, **pieces}.items():
        shutil.copyfile(piece, run.output(output))
    return Enhanced(**json.loads(told.read_text(encoding="utf-8")))


def _tell(output: Path, record: dict[str, Any]) -> None:
    click.echo(
        f"{output}: {len(record['metrics'])} file(s), {record['method']} ({record['estimator']}), {record['nfe']} network "
        f"evaluations per window, {record['seconds']['total']:.1f} s"
    )
    if record["estimator"] == "point":
        click.echo(
            "No uncertainty: this method is a point estimate; storm with --samples N tells where draws disagree."
        )
    for sentence in record["warnings"]:
        click.echo(f"Note: {sentence}")
    for name, reason in record["failed"].items():
        click.echo(f"Failed: {name}: {reason}", err=True)


# --- evaluate ---------------------------------------------------------------------------------------------------------


def evaluate_verb(
    result: Path, reference: Path, json_to: str | None, noisy: Path | None, rir: Path | None, dnsmos: Path | None
) -> None:
    """`speech evaluate`: result and clean reference -> metrics, by file and their mean."""
    pairs = pair_up(result, reference)
    opinion = None if dnsmos is None else Dnsmos(dnsmos)
    rows: dict[str, Metrics] = {}
    for name, (file, truth) in pairs.items():
        before = None if noisy is None else (noisy / name if noisy.is_dir() else noisy)
        rows[name] = _compare(file, truth, before, rir, opinion)
    settings = {"files": len(rows), "perceptual_rate_hz": 16000, "reference": reference.name}
    mean = mean_of(list(rows.values()))
    if not emit({"metrics": mean, "settings": settings, "files": rows}, json_to):
        for name, row in {**(rows if len(rows) > 1 else {}), "mean": mean}.items():
            told = "  ".join(f"{key} {'-' if value is None else f'{value:.3f}'}" for key, value in row.items())
            click.echo(f"{name:32} {told}")


def pair_up(result: Path, reference: Path) -> dict[str, tuple[Path, Path]]:
    """Result files and their references, by name; a single result needs no equal name.

    Raises:
        InputError: no result, or one without a reference.
    """
    found = [result] if result.is_file() else [file for file in audio_files(result) if file.parent == result]
    if not found:
        raise InputError(f"{result}: holds no finished result; run the enhancement (again)")
    if reference.is_file():
        if len(found) > 1:
            raise InputError(f"{result}: holds {len(found)} files; their references are a folder with the same names")
        return {found[0].name: (found[0], reference)}
    truths = {file.name: file for file in audio_files(reference)}
    stems = {file.stem: file for file in truths.values()}
    pairs = {}
    for file in found:
        truth = truths.get(file.name) or stems.get(file.stem)
        if truth is None:
            raise InputError(f"{reference}: holds no reference named {file.name}")
        pairs[file.name] = (file, truth)
    return pairs


def _compare(file: Path, truth: Path, noisy: Path | None, rir: Path | None, opinion: Dnsmos | None) -> Metrics:
    """The metrics of one file, the mean over its channels."""
    (x, rate), (s, other) = read_audio(file), read_audio(truth)
    if rate != other or x.shape != s.shape:
        raise InputError(
            f"{file.name} has {x.shape[0]} samples, {x.shape[1]} channel(s) at {rate} Hz and its reference {s.shape[0]}, "
            f"{s.shape[1]} at {other} Hz; they must agree"
        )
    y = None if noisy is None else read_audio(noisy)[0]
    if y is not None and y.shape != x.shape:
        raise InputError(f"{noisy}: the recording before has another length or number of channels than the result")
    room = None if rir is None else _first_channel(rir, rate)
    rows = []
    for c in range(x.shape[1]):
        row = evaluate(x[:, c], s[:, c], rate, None if y is None else y[:, c])
        if room is not None:
            row["drr_room"] = direct_to_reverberant(room, rate)
            row["drr"] = remaining_reverberation(x[:, c], s[:, c], rate)
        rows.append(row | ({} if opinion is None else opinion(x[:, c], rate)))
    return mean_of(rows)


# --- demo -------------------------------------------------------------------------------------------------------------


def demo_run(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """The demonstration: a synthetic voice in noise."""
    import tempfile

    from domains.speech.mixing import synthetic_voice

    if not quiet:
        click.echo("No recording ships with a dependency: the demonstration is a synthetic voice in noise.")
    rate = 16000
    voice = synthetic_voice(4.0, rate)
    rng = np.random.default_rng(0)
    noisy = voice + scaled_to(rng.standard_normal(len(voice)).astype(np.float32), voice, 5.0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "voice.wav"
        write_audio(file, noisy[:, None], Audio(file, rate, len(noisy), 1, "WAV", "PCM_16", "FILE"))
        options = MainOptions(
            output=output,
            seed=0,
            overwrite=overwrite,
            quiet=quiet,
            command=("diffsuite", "demo", "speech"),
        )
        enhance_verb(file, options, {})
    return output / "report.html"
