"""What the hyperspectral verbs do, from file to file."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from domains.hyperspectral.containers import Cube
from domains.hyperspectral.data import input_files, read_cube, write_like, write_new
from domains.hyperspectral.methods import DenoiseConfig
from domains.hyperspectral.metrics import NORMALISATION
from domains.hyperspectral.output import band_table, findings_of, report_of, restored, untouched, write_bands
from domains.hyperspectral.pipeline import choose_method, denoise, load_hyperspectral_prior
from domains.hyperspectral.rebuild import Denoised
from domains.hyperspectral.simulation import SimulationConfig, degrade
from suite.config import load_config
from suite.errors import InputError
from suite.options import MainOptions, command_line
from suite.prior import Prior
from suite.records import emit
from suite.report import write_report
from suite.run import Run, resolve_device, sha256_file
from suite.trust import interval_factor
from suite.verdict import Findings


def simulate_verb(path: Path, given: dict[str, Any]) -> None:
    """`hyperspectral simulate`: clean cube -> noisy cube in the same physical units."""
    output: Path = given["output"]
    if not math.isfinite(given["sigma"]) or given["sigma"] < 0:
        raise InputError(f"--sigma {given['sigma']}: a finite number of at least 0 is needed")
    options = {name: given[name] for name in ("case", "sigma", "keep", "factor")} | {"seed": given["seed"] or 0}
    config = load_config(SimulationConfig, options=options)
    cube = read_cube(path, given["key"])
    with Run(
        output,
        domain="hyperspectral",
        config=config,
        inputs=input_files(cube),
        command=command_line(),
        seed=config.seed,
        as_file=True,
        overwrite=given["overwrite"],
    ) as run:
        for sentence in cube.warnings:
            run.warn(sentence)
        run.extra |= {"normalisation": NORMALISATION.replace("the reference", "the clean cube")}
        noisy = degrade(cube.values(), config)
        if config.case == "lowres":  # the header's size and the maps are those of the finer grid
            cube = replace(cube, kind="new", outside=None)
        if not (cube.kind == "envi" and output.suffix.lower() == ".hdr"):  # there the header, with its scale, is kept
            noisy = noisy * np.float32(cube.scale) + np.float32(cube.offset)
        written = write_new(cube, noisy, run.output(output.name))
        for part in written:
            if part.name != output.name:  # ENVI's raw file goes before its header, which the run moves
                os.replace(part, output.with_name(part.name))
    if not emit(run.record, given["json_to"]) and not given["quiet"]:
        click.echo(f"{output}: {' x '.join(map(str, noisy.shape))}, case {config.case}, seed {config.seed}")


def denoise_verb(path: Path, repair_bad: bool, fill: bool, options: MainOptions) -> None:
    """`hyperspectral denoise`: cube -> result folder."""
    config = load_config(DenoiseConfig, options.config, options.overrides, options.given())
    asked = {"repair_bad": config.repair_bad or repair_bad, "fill": config.fill or fill}
    config = config.model_copy(update=asked)
    method = choose_method(config)
    device = resolve_device(config.device)
    cube = read_cube(path, config.key)
    with Run(
        options.output,
        domain="hyperspectral",
        config=config,
        inputs=input_files(cube),
        command=options.command,
        device=device,
        seed=config.seed,
        method=method,
        overwrite=options.overwrite,
    ) as run:
        for sentence in cube.warnings:
            run.warn(sentence)
        prior = load_hyperspectral_prior(config.prior, device, method)
        if prior is not None:
            run.prior = {"name": prior.card.name, "sha256": prior.sha256}
        result = denoise(cube, method, prior, config, sha256_file(run.input_files[0][0]), run.clock)
        rows = band_table(cube, result)
        findings = _leave(run, cube, result, rows, prior, config.samples)
        if options.report:
            write_report(report_of(run, cube, result, rows, findings), run.output("report.html"))
    if not emit(run.record, options.json_to) and not options.quiet:
        _tell(options.output, run.record)


def _intervals(prior: Prior | None, samples: int) -> dict[str, Any]:
    """Half-width of the 90 % interval over the standard deviation, by the prior's calibration where it has one."""
    found = {} if prior is None else prior.card.calibration.get("intervals", {})
    scale = float(found.get("scale", 1.0))
    factor = round(scale * interval_factor(samples), 4)
    return {"level": 0.9, "factor": factor, "scale": scale, "calibrated_on": found.get("data", [])}


def _leave(
    run: Run, cube: Cube, result: Denoised, rows: list[dict[str, Any]], prior: Prior | None, samples: int
) -> Findings:
    """The files of a result, what the record says of it, and what speaks for and against it."""
    if not np.isfinite(result.data[..., result.model.used]).any():
        raise RuntimeError("the result is not finite")
    calibrated = None
    suffix = "" if cube.source is None else cube.source.suffix
    write_like(cube, result.data, run.output(f"denoised{suffix}"))
    if result.std is not None:
        kind = {"envi": ".hdr", "mat": ".mat", "mat73": ".mat", "npy": ".npy"}.get(cube.kind, ".npz")
        write_new(replace(cube, kind="new", key="std"), result.std, run.output(f"std{kind}"))
        run.extra["intervals"] = _intervals(prior, samples)
        calibrated = bool(run.extra["intervals"]["calibrated_on"])
    write_bands(rows, run.output("bands.csv"))
    known = untouched(rows, result)
    for sentence in (*restored(rows), *known):
        run.warn(sentence)
    run.nfe, run.misfit_chi2, run.estimator = result.estimate.evaluations, result.chi2, result.estimate.estimator
    run.metrics = {
        "residual_correlation_along": result.whiteness[0],
        "residual_correlation_across": result.whiteness[1],
        "median_snr": float(np.median(result.model.signal / result.model.sigma)),
        "values_lost": float(result.lost.mean()),
        "striped_columns": float((result.model.stripes != 0).mean()),
    }
    run.extra |= {"rank": result.model.rank, "noise_estimate": "from the cube itself", **result.estimate.told}
    findings = findings_of(result, run.warnings, known, calibrated)
    run.extra |= findings.record()
    return findings


def _tell(output: Path, record: dict[str, Any]) -> None:
    click.echo(
        f"{output}: {record['method']} ({record['estimator']}), rank {record['rank']}, {record['nfe']} network evaluations, "
        f"{record['seconds']['total']:.1f} s, residual chi-square {record['misfit_chi2']:.3f}"
    )
    for sentence in record["warnings"]:
        click.echo(f"Note: {sentence}")
    click.echo(record["verdict"]["line"])


def demo_scene() -> np.ndarray:
    """A picture of scikit-image as a scene of 60 bands: smooth spectra mixed by its colours, `(rows, columns, bands)`."""
    from skimage.data import astronaut

    colours = astronaut()[:192, 96:288].astype(np.float32) / 255
    band = np.linspace(0, 1, 60)
    spectra = np.stack([np.exp(-0.5 * ((band - centre) / 0.3) ** 2) for centre in (0.2, 0.5, 0.85)]).astype(np.float32)
    return np.asarray(colours @ spectra)


def demo_run(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """The demonstration: a picture as a scene, with the mixture of all noise cases."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scene.npy"
        np.save(file, degrade(demo_scene(), SimulationConfig(case="mixture")))
        options = MainOptions(
            output=output,
            seed=0,
            overwrite=overwrite,
            quiet=quiet,
            command=("diffsuite", "demo", "hyperspectral"),
        )
        if not quiet:
            click.echo("No hyperspectral cube ships with a dependency: the demonstration is a simulated scene.")
        denoise_verb(file, False, False, options)
    return output / "report.html"
