"""What the MRI verbs do, from file to file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from domains.mri.containers import Volume
from domains.mri.coupled import groups_of, reconstruct_group
from domains.mri.data import read_kspace, read_volume, write_fastmri
from domains.mri.fastmri import read_target
from domains.mri.metrics import evaluate as evaluate_images
from domains.mri.output import findings_of, report_of, write_outputs
from domains.mri.pipeline import (
    CLASSICAL,
    COUPLED,
    LEARNED,
    ReconstructConfig,
    Reconstruction,
    choose_method,
    load_mri_prior,
    reconstruct,
    tuned,
)
from domains.mri.problem import Problem, pose
from domains.mri.simulation import SimulationConfig, facts, kspace_of
from domains.mri.tuning import some_slices
from suite.config import load_config
from suite.errors import InputError
from suite.options import MainOptions, command_line
from suite.prior import Prior
from suite.progress import progress
from suite.records import emit
from suite.report import write_report
from suite.run import Run, resolve_device, sha256_file


def simulate_verb(path: Path, given: dict[str, Any]) -> None:
    """`mri simulate`: volume -> k-space file."""
    output: Path = given["output"]
    chosen: slice | None = given["slices"]
    for option in ("acceleration", "snr", "acs"):
        if given[option] is not None and not math.isfinite(given[option]):
            raise InputError(f"--{option} {given[option]}: a finite number is needed")
    options = {name: given[name] for name in ("acceleration", "mask", "coils", "acs", "snr")}
    options |= {"slices": None if chosen is None else [chosen.start, chosen.stop], "seed": given["seed"] or 0}
    config = load_config(SimulationConfig, options=options)
    with Run(
        output,
        domain="mri",
        config=config,
        inputs=[path],
        command=command_line(),
        seed=config.seed,
        as_file=True,
        overwrite=given["overwrite"],
    ) as run:
        volume = read_volume(path, series_uid=given["series"], slices=chosen)
        for sentence in volume.warnings:
            run.warn(sentence)
        with run.clock("operator"):
            scan = kspace_of(volume, config)
        run.extra |= facts(scan, config)
        write_fastmri(scan, run.output(output.name))
    if not emit(run.record, given["json_to"]) and not given["quiet"]:
        slices, coils, rows, columns = scan.kspace.shape
        click.echo(
            f"{output}: {slices} slices x {coils} coils x {rows} x {columns}, acceleration {scan.acceleration:.2f}, "
            f"SNR {config.snr:g} dB"
        )


def reconstruct_verb(path: Path, dicom: bool, tune: bool, options: MainOptions) -> None:
    """`mri reconstruct`: k-space file -> result folder."""
    config = load_config(ReconstructConfig, options.config, options.overrides, options.given())
    config = config.model_copy(update={"dicom": config.dicom or dicom, "tune": config.tune or tune})
    method = choose_method(config)
    device = resolve_device(config.device)
    inputs = [path.with_suffix(suffix) for suffix in (".cfl", ".hdr")] if path.suffix in (".cfl", ".hdr") else [path]
    with Run(
        options.output,
        domain="mri",
        config=config,
        inputs=inputs,
        command=options.command,
        device=device,
        seed=config.seed,
        method=method,
        overwrite=options.overwrite,
    ) as run:
        kspace = read_kspace(path, key=config.key, layout=config.layout)
        prior = None if method in CLASSICAL else load_mri_prior(config.prior, device)
        if prior is not None:
            run.prior = {"name": prior.card.name, "sha256": prior.sha256}
        with run.clock("operator"):
            coils = config.coils
            problem = pose(kspace, coils=coils.most, calibration=coils.calibration, crop=coils.crop)
        for sentence in problem.warnings:
            run.warn(sentence)
        result = _reconstruct(run, problem, method, prior, config, options.quiet)
        run.extra |= {"acceleration": problem.acceleration, "noise_known": problem.noise_known}
        write_outputs(run, problem, result, prior, dicom=config.dicom)
        findings = findings_of(run, result, prior)
        run.extra |= findings.record()
        if options.report:
            write_report(report_of(run, problem, result, findings), run.output("report.html"))
    if not emit(run.record, options.json_to) and not options.quiet:
        _tell(options.output, run.record)


def _reconstruct(
    run: Run, problem: Problem, method: str, prior: Prior | None, config: ReconstructConfig, quiet: bool
) -> Reconstruction:
    """Every slice, a batch (of a coupled method: a group) at a time; those finished of an interrupted run are taken over."""
    digest = sha256_file(run.input_files[0][0])
    factors = _tuned(run, problem, prior, config) if config.tune and prior is not None else None
    coupled = method in COUPLED
    every = list(range(problem.slices))
    groups = groups_of(method, problem) if coupled else [every[k : k + config.batch] for k in every[:: config.batch]]
    pieces: list[dict[str, NDArray[Any]]] = []
    with progress("Reconstructing", problem.slices, quiet=quiet) as update:
        for rows in groups:

            def compute(rows: list[int] = rows) -> dict[str, NDArray[Any]]:
                with run.clock("operator"):
                    chunk = problem.part(rows, run.device)
                    identities = [f"{digest} {k}" for k in rows]
                    if coupled and prior is not None:
                        return _arrays(reconstruct_group(method, chunk, prior, config, identities, run.clock))
                    return _arrays(reconstruct(method, chunk, prior, config, identities, run.clock, factors))

            pieces.append(run.piece(f"slices-{rows[0]}-{rows[-1] + 1}", compute))
            update(sum(len(p["chi2"]) for p in pieces))
    order = torch.tensor([k for rows in groups for k in rows]).argsort()

    def joined(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([p[name] for p in pieces]))[order]

    evaluations = max(int(p["evaluations"]) for p in pieces)
    std, share = (joined(name) if name in pieces[0] else None for name in ("std", "share"))
    arrays = (joined(name) for name in ("image", "reference", "chi2", "scale", "left"))
    image, reference, chi2, scale, left = arrays
    result = Reconstruction(image, reference, std, chi2, scale, evaluations, left, share)
    if "coupling" in pieces[0]:
        run.extra["coupling"] = joined("coupling").tolist()
    run.nfe = evaluations
    run.misfit_chi2 = float(chi2.mean())
    run.extra["misfit_chi2_adjusted"] = float((chi2 / left).mean())
    run.estimator = "mean" if config.samples > 1 else "point" if prior is None else LEARNED[method].estimator
    return result


def _tuned(run: Run, problem: Problem, prior: Prior, config: ReconstructConfig) -> dict[str, float]:
    """The factors for this scan; the record lists what was tried."""

    def compute() -> dict[str, NDArray[Any]]:
        with run.clock("operator"):
            tried = tuned(some_slices(problem, run.device), prior, config, run.clock)
        return {name: np.asarray([row[name] for row in tried]) for name in tried[0]}

    columns = run.piece("tuning", compute)
    rows = [dict(zip(columns, map(float, values), strict=True)) for values in zip(*columns.values(), strict=True)]
    best = min(rows, key=lambda row: row["misfit"])
    factors = {name: value for name, value in best.items() if name != "misfit"}
    run.extra["tuning"] = {"factors": factors, "tried": rows}
    return factors


def _arrays(out: Reconstruction) -> dict[str, NDArray[Any]]:
    if not bool(torch.isfinite(torch.view_as_real(out.image)).all()):
        raise RuntimeError("the reconstruction is not finite")
    arrays = {name: getattr(out, name).cpu().numpy() for name in ("image", "reference", "chi2", "scale", "left")}
    arrays["evaluations"] = np.asarray(out.evaluations)
    maps = {"std": out.std, "share": out.share, "coupling": out.coupling}
    return arrays | {name: values.cpu().numpy() for name, values in maps.items() if values is not None}


def _tell(output: Path, record: dict[str, Any]) -> None:
    click.echo(
        f"{output}: {record['method']} ({record['estimator']}), {record['nfe']} network evaluations, "
        f"{record['seconds']['total']:.1f} s, acceleration {record['acceleration']:.2f}, misfit chi-square "
        f"{record['misfit_chi2']:.2f}"
    )
    click.echo(record["verdict"]["line"])
    if record["estimator"] == "point":
        click.echo("No uncertainty: this method is a point estimator; use --samples N for a standard deviation.")
    for sentence in record["warnings"]:
        click.echo(f"Note: {sentence}")


def _image(path: Path) -> Volume:
    """A result folder's magnitude, or an image file."""
    if path.is_dir() and (path / "magnitude.nii.gz").exists():
        return read_volume(path / "magnitude.nii.gz")
    if path.is_dir() and any(path.glob("*.partial")):
        raise InputError(f"{path}: holds an unfinished run and no magnitude.nii.gz; run the reconstruction again")
    return read_volume(path)


def evaluate_verb(
    result: Path, reference: Path, slices: slice | None, series: str | None, convention: str, json_to: str | None
) -> None:
    """`mri evaluate`: result and truth -> metrics."""
    image = _image(result)
    if reference.suffix.lower() in (".h5", ".hdf5"):
        truth = read_target(reference)
        truth = truth if slices is None else truth[slices]
    else:
        truth = np.maximum(read_volume(reference, series_uid=series, slices=slices).data, 0)
    found = evaluate_images(image.data, truth, convention)
    settings = {
        "convention": convention,
        "slices": None if slices is None else [slices.start, slices.stop],
        "slices_evaluated": len(found["slices"]),
    }
    if not emit({"metrics": found["metrics"], "settings": settings, "slices": found["slices"]}, json_to):
        for name, value in found["metrics"].items():
            click.echo(f"{name:12} {value:10.4f}")


def next_lines_verb(path: Path, given: dict[str, Any]) -> None:
    """`mri next-lines`: undersampled k-space -> the lines to acquire next."""
    from domains.mri.next_lines import check_lines, particles, propose

    device = resolve_device(given["device"] or "auto")
    prior = load_mri_prior(given["prior"], device)
    problem = pose(read_kspace(path, key=given["key"]))
    check_lines(problem)
    some = some_slices(problem, device)
    with progress("Drawing particles", given["particles"], quiet=given["quiet"]) as update:
        images = particles(some, prior, given["particles"], given["steps"], given["seed"] or 0, update)
    found = propose(some, images, given["budget"])
    errors, limit = found.expected_error, given["error"]
    needed = None if limit is None else next((n for n, error in enumerate(errors) if error <= limit), None)
    enough = None if limit is None else errors[0] <= limit
    record = {
        "file": path.name,
        "axis": found.axis,
        "acceleration": problem.acceleration,
        "expected_error": errors[0],
        "enough": enough,
        "lines_needed": needed,
        "lines": [
            {"line": line, "worth": worth, "expected_error": error}
            for line, worth, error in zip(found.lines, found.worth, errors[1:], strict=True)
        ],
        "warnings": list(problem.warnings),
    }
    if not emit(record, given["json_to"]):
        _tell_lines(record, limit)


def _tell_lines(record: dict[str, Any], limit: float | None) -> None:
    click.echo(f"{record['file']}: expected relative error {record['expected_error']:.3g} with the lines acquired")
    if limit is not None and record["enough"]:
        click.echo(f"Enough: the error expected is not above {limit:g}.")
    elif limit is not None:
        needed = record["lines_needed"]
        said = f"{needed} more lines are expected to reach" if needed else "these lines do not reach"
        click.echo(f"Not enough yet: {said} {limit:g}.")
    click.echo(f"{record['axis']:>6} {'worth':>10} {'error':>10}")
    for row in record["lines"]:
        click.echo(f"{row['line']:6} {row['worth']:10.1f} {row['expected_error']:10.3g}")
    for sentence in record["warnings"]:
        click.echo(f"Note: {sentence}")


def demo_run(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """The demonstration: the Shepp-Logan phantom of scikit-image, simulated at 4x and reconstructed."""
    import tempfile

    from skimage.data import shepp_logan_phantom
    from skimage.transform import resize

    image = resize(shepp_logan_phantom(), (200, 200), anti_aliasing=True).astype(np.float32)
    volume = Volume(image[None] * np.float32(1000), np.diag([-1.0, -1.0, 1.0, 1.0]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kspace.h5"
        write_fastmri(kspace_of(volume, SimulationConfig(acceleration=4)), file)
        options = MainOptions(
            output=output,
            seed=0,
            overwrite=overwrite,
            quiet=quiet,
            command=("diffsuite", "demo", "mri"),
        )
        if not quiet:
            click.echo("No real k-space ships with a dependency: the demonstration is a simulated scan of a phantom.")
        reconstruct_verb(file, False, False, options)
    return output / "report.html"
