"""What the CT verbs do, from file to file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from domains.ct.cone_problem import ConeProblem, pose_cone
from domains.ct.cone_volume import check_method, reconstruct_cone
from domains.ct.containers import Volume
from domains.ct.data import Derivation, read_scan, read_volume, write_nifti, write_scan, write_series
from domains.ct.dicom_maps import PRIOR_SHARE, STD, add_map
from domains.ct.metrics import WINDOWS
from domains.ct.metrics import evaluate as evaluate_images
from domains.ct.page import Doubts, doubts_of, in_unit, reconstruction_page
from domains.ct.pipeline import (
    CLASSICAL,
    LEARNED,
    ReconstructConfig,
    Reconstruction,
    choose_method,
    classical,
    finite,
    learned,
    load_ct_prior,
    misfit,
    part,
    water_level,
)
from domains.ct.problem import Problem, pose, with_given
from domains.ct.projector import load_kernels
from domains.ct.simulation import SimulationConfig, resized, scan_of
from domains.ct.volume import reconstruct_volume
from suite import __version__
from suite.config import load_config
from suite.errors import InputError
from suite.options import MainOptions
from suite.prior import Prior
from suite.progress import progress
from suite.records import emit
from suite.report import write_report
from suite.run import Run, resolve_device, sha256_file


def simulate_verb(path: Path, given: dict[str, Any]) -> None:
    """`ct simulate`: volume -> scan file."""
    output: Path = given["output"]
    if given["arc"] is not None:
        _finite("--arc", given["arc"])
    config = SimulationConfig(
        views=given["views"],
        arc=given["arc"],
        geometry=given["geometry"],
        photons=_finite("--photons", given["photons"]),
        electronic=_finite("--electronic", given["electronic"]),
        size=given["size"],
        seed=given["seed"] or 0,
    )
    from suite.options import command_line

    with Run(
        output,
        domain="ct",
        config=config,
        inputs=[path],
        command=command_line(),
        seed=config.seed,
        as_file=True,
        overwrite=given["overwrite"],
    ) as run:
        volume = read_volume(path, series_uid=given["series"], slices=given["slices"])
        with run.clock("operator"):
            scan = scan_of(volume, config)
        for sentence in scan.warnings:
            run.warn(sentence)
        write_scan(scan, run.output(output.name))
    if not emit(run.record, given["json_to"]) and not given["quiet"]:
        views, rows, columns = scan.shape
        click.echo(f"{output}: {views} views x {rows} slices x {columns} bins, {config.photons:g} photons per ray")


def _finite(option: str, value: float) -> float:
    if not np.isfinite(value) or value < 0:
        raise InputError(f"{option} {value}: a finite number is needed, zero or more")
    return value


def reconstruct_verb(path: Path, dicom: bool, options: MainOptions) -> None:
    """`ct reconstruct`: scan file -> result folder."""
    config = load_config(ReconstructConfig, options.config, options.overrides, options.given())
    config = config.model_copy(update={"dicom": config.dicom or dicom})
    method = choose_method(config)
    device = resolve_device(config.device)
    load_kernels()
    with Run(
        options.output,
        domain="ct",
        config=config,
        inputs=[path],
        command=options.command,
        device=device,
        seed=config.seed,
        method=method,
        overwrite=options.overwrite,
    ) as run:
        scan = with_given(read_scan(path, key=config.key), config.geometry)
        problem = pose_cone(scan) if scan.geometry == "cone" else pose(scan, config.geometry)
        if isinstance(problem, ConeProblem):
            check_method(method)
        for sentence in problem.warnings:
            run.warn(sentence)
        prior = None if method in CLASSICAL else load_ct_prior(config.prior, device)
        if prior is not None:
            run.prior = {"name": prior.card.name, "sha256": prior.sha256}
        work = _reconstruct_cone if isinstance(problem, ConeProblem) else _reconstruct
        result, mu_water = work(run, problem, method, prior, config, options.quiet)  # type: ignore[arg-type]
        doubts = doubts_of(run, result, mu_water, prior, config.samples)
        _write(run, problem, result, mu_water, doubts, prior, config)
        doubts = replace(doubts, findings=replace(doubts.findings, doubts=run.warnings))
        run.extra |= doubts.findings.record()
        if options.report:
            write_report(reconstruction_page(run, problem, result, doubts, mu_water), run.output("report.html"))
    if not emit(run.record, options.json_to) and not options.quiet:
        _tell(options.output, run.record)


def _reconstruct_cone(
    run: Run, problem: ConeProblem, method: str, prior: Prior | None, config: ReconstructConfig, quiet: bool
) -> tuple[Reconstruction, float | None]:
    """The volume of a cone-beam scan, in one piece."""
    problem = replace(problem, data=type(problem.data)(*(v.to(run.device) for v in problem.data)))
    mu_water = problem.scan.mu_water_per_mm
    if mu_water is None and prior is not None:
        raise InputError(
            f"{run.input_files[0][0]}: does not tell the attenuation of water, which the prior needs in cone beam; give "
            "--set geometry.mu_water_per_mm=VALUE"
        )
    with progress("Reconstructing", config.steps or 20, quiet=quiet) as update, run.clock("operator"):
        identity = sha256_file(run.input_files[0][0])
        result = reconstruct_cone(problem, method, prior, mu_water or 0.0, config, identity, run.clock, update)
    for values in (result.image, result.reference):
        finite(values)
    run.nfe, run.misfit_chi2 = result.evaluations, float(result.chi2.mean())
    run.estimator = "point"
    return result, mu_water


def _reconstruct(
    run: Run, problem: Problem, method: str, prior: Prior | None, config: ReconstructConfig, quiet: bool
) -> tuple[Reconstruction, float | None]:
    """Every slice, a batch at a time; finished batches of an interrupted run are taken over."""
    device = run.device
    digest = sha256_file(run.input_files[0][0])
    data = type(problem.data)(*(v.to(device) for v in problem.data))
    problem = replace(problem, data=data)
    mu_water = problem.scan.mu_water_per_mm
    size = problem.slices if method == "mbir" else max(1, config.batch)
    pieces: list[dict[str, NDArray[Any]]] = []
    level = 0.0 if prior is None else _water_level(run, problem)
    with progress("Reconstructing", problem.slices, quiet=quiet) as update:
        for first in range(0, problem.slices, size):
            rows = slice(first, min(first + size, problem.slices))
            chunk = part(problem, rows)

            def compute(chunk: Problem = chunk, rows: slice = rows) -> dict[str, NDArray[Any]]:
                with run.clock("operator"):
                    identities = [f"{digest} {k}" for k in range(rows.start, rows.stop)]
                    return _batch(run, chunk, method, prior, level, config, identities, update)

            pieces.append(run.piece(f"slices-{rows.start}-{rows.stop}", compute))
            update(rows.stop)

    def joined(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([p[name] for p in pieces]))

    evaluations = max(int(p["evaluations"]) for p in pieces)
    std, share, wander = (joined(name) if name in pieces[0] else None for name in ("std", "share", "wander"))
    result = Reconstruction(joined("image"), joined("reference"), std, joined("chi2"), evaluations, share, wander)
    run.nfe = evaluations
    run.misfit_chi2 = float(result.chi2.mean())
    run.estimator = "mean" if config.samples > 1 else "point" if prior is None else LEARNED[method].estimator
    return result, mu_water


def _water_level(run: Run, problem: Problem) -> float:
    """`mu_water` for the prior. Where the scan does not tell it, the fullest slice does: one level for every batch."""
    if problem.scan.mu_water_per_mm is not None:
        return problem.scan.mu_water_per_mm
    fullest = int(problem.data.line_integrals.flatten(1).mean(1).argmax())
    chunk = part(problem, slice(fullest, fullest + 1))
    with run.clock("operator"):
        level, sentence = water_level(chunk, classical("tv", chunk))
    run.warn(sentence or "")
    return level


def _batch(
    run: Run,
    chunk: Problem,
    method: str,
    prior: Prior | None,
    level: float,
    config: ReconstructConfig,
    identities: list[str],
    update: Callable[..., None],
) -> dict[str, NDArray[Any]]:
    if prior is None:
        image = classical(method, chunk)
        out = Reconstruction(image, classical("fbp", chunk), None, misfit(chunk, image), 0)
    elif method == "mbir":
        out = reconstruct_volume(chunk, prior, level, config, identities, run.clock, update)
    else:
        out = learned(method, chunk, classical("tv", chunk), prior, level, config, identities, run.clock)
    arrays = {
        "image": finite(out.image),
        "reference": finite(out.reference),
        "chi2": out.chi2.cpu().numpy(),
        "evaluations": np.asarray(out.evaluations),
    }
    maps = {"std": out.std, "share": out.share, "wander": out.wander}
    return arrays | {name: finite(values) for name, values in maps.items() if values is not None}


def _write(
    run: Run,
    problem: Problem | ConeProblem,
    result: Reconstruction,
    mu_water: float | None,
    doubts: Doubts,
    prior: Prior | None,
    config: ReconstructConfig,
) -> None:
    unit = "1/mm" if mu_water is None else "HU"
    run.extra["unit"] = unit
    recon_unit = in_unit(result.image, mu_water)
    recon = problem.volume(recon_unit, unit)
    write_nifti(recon, run.output("recon.nii.gz"))
    write_nifti(problem.volume(in_unit(result.reference, mu_water), unit), run.output("reference.nii.gz"))
    if result.std is not None:
        std = in_unit(result.std, mu_water, difference=True)
        write_nifti(problem.volume(std, unit), run.output("std.nii.gz"))
        half = doubts.interval * std
        for name, bound in (("lower", recon_unit - half), ("upper", recon_unit + half)):
            write_nifti(problem.volume(bound, unit), run.output(f"{name}.nii.gz"))
    if result.share is not None:
        write_nifti(problem.volume(result.share, "1"), run.output("share.nii.gz"))
    if result.wander is not None:
        wander = in_unit(result.wander, mu_water, difference=True)
        write_nifti(problem.volume(wander, unit), run.output("wander.nii.gz"))
    if doubts.disagreement is not None:
        write_nifti(problem.volume(doubts.disagreement, "1"), run.output("disagreement.nii.gz"))
    if problem.scan.dicom is None and not config.dicom:
        return
    if mu_water is None:
        run.warn("No DICOM series was written: it needs HU, and the scan does not tell the attenuation of water.")
        return
    description = f"DIFFSUITE {run.method} {problem.geometry.n_views} views NOT FOR PRIMARY DIAGNOSIS"
    text = f"diffsuite {__version__} {run.method}, {run.nfe} evaluations, seed {run.seed}"
    model = "" if prior is None else f"{prior.card.name} {prior.sha256[:16]}"
    derivation = Derivation(description[:64], text, __version__, model, simulated_dose=True)
    files = write_series(recon, run.output("dicom"), derivation)
    if result.std is not None:
        std = in_unit(result.std, mu_water, difference=True)
        add_map(run, problem.volume(std, unit), files, STD, derivation)
    if result.share is not None:
        add_map(run, problem.volume(result.share, "1"), files, PRIOR_SHARE, derivation)


def _tell(output: Path, record: dict[str, Any]) -> None:
    chi2 = record["misfit_chi2"]
    click.echo(
        f"{output}: {record['method']} ({record['estimator']}), {record['nfe']} network evaluations, "
        f"{record['seconds']['total']:.1f} s, misfit chi-square {chi2:.2f}"
    )
    if record["estimator"] == "point":
        click.echo("No uncertainty: this method is a point estimator; use --samples N for a standard deviation.")
    for sentence in record["warnings"]:
        click.echo(f"Note: {sentence}")


def _image(path: Path) -> Volume:
    """A result folder's image, or an image file."""
    for name in ("recon.nii.gz", "denoised.nii.gz"):
        if path.is_dir() and (path / name).exists():
            return read_volume(path / name)
    if path.is_dir() and any(path.glob("*.partial")):
        raise InputError(f"{path}: holds an unfinished run and no recon.nii.gz; run the reconstruction again")
    return read_volume(path)


def evaluate_verb(
    result: Path, reference: Path, slices: slice | None, size: int | None, series: str | None, json_to: str | None
) -> None:
    """`ct evaluate`: result and truth -> metrics."""
    truth = resized(read_volume(reference, series_uid=series, slices=slices), size)
    image = _image(result)
    for volume in (image, truth):
        if volume.unit != "HU":
            raise InputError(f"{volume.name}: the values are in {volume.unit}, and HU are needed")
    found = evaluate_images(image.data, truth.data)
    settings = {
        "slices": None if slices is None else [slices.start, slices.stop],
        "size": size,
        "mask": "body of the reference: > -400 HU, opened, largest piece, holes filled",
        "windows": {name: {"width": w, "level": level} for name, (w, level) in WINDOWS.items()},
        "slices_evaluated": len(found["slices"]),
    }
    if not emit({"metrics": found["metrics"], "settings": settings, "slices": found["slices"]}, json_to):
        for name, value in found["metrics"].items():
            click.echo(f"{name:12} {value:10.4f}")


def demo_run(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """The demonstration: simulate a scan of pydicom's CT slice with 30 views, reconstruct it, evaluate it."""
    import tempfile

    from pydicom.data import get_testdata_file

    source = get_testdata_file("CT_small.dcm")
    if source is None:
        raise InputError("pydicom's own test file CT_small.dcm is missing from this installation")
    with tempfile.TemporaryDirectory() as folder:
        scan_file = Path(folder) / "scan.h5"
        scan = scan_of(read_volume(Path(str(source))), SimulationConfig(views=30, photons=1e5))
        write_scan(scan, scan_file)
        options = MainOptions(
            output=output,
            seed=0,
            overwrite=overwrite,
            quiet=quiet,
            command=("diffsuite", "demo", "ct"),
        )
        reconstruct_verb(scan_file, False, options)
    return output / "report.html"
