"""`ct denoise`, from series to series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from domains.ct.calibrate import description
from domains.ct.containers import Volume
from domains.ct.data import Derivation, read_volume, write_nifti, write_series
from domains.ct.denoise import DenoiseConfig, choose, denoise, non_local_means
from domains.ct.dicom_maps import STD, add_map
from domains.ct.metrics import WINDOWS
from domains.ct.noise_estimate import NoiseModel, estimate_noise, noise_left
from domains.ct.physics import body_mask
from domains.ct.pipeline import LEARNED, finite, load_ct_prior
from suite import __version__
from suite.config import load_config
from suite.errors import InputError
from suite.options import MainOptions
from suite.prior import Prior
from suite.progress import progress
from suite.records import emit
from suite.report import Figure, Report, Stack, write_report
from suite.run import Run, resolve_device, sha256_file
from suite.trust import Familiarity
from suite.verdict import Findings

_SLICES_ASKED = 8
_COARSE_MM = 1.3  # pixels from which on tissue looks like noise, and the estimate comes out too high
_DOSE = {"CTDIvol": "CTDIvol (mGy)", "Exposure": "exposure (mAs)", "XRayTubeCurrent": "tube current (mA)", "KVP": "kVp"}


def denoise_verb(path: Path, series: str | None, options: MainOptions) -> None:
    """`ct denoise`: image series -> result folder."""
    config = load_config(DenoiseConfig, options.config, options.overrides, options.given())
    method, samples = choose(config)
    device = resolve_device(config.device)
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
        volume = read_volume(path, series_uid=series, key=config.key)
        if volume.unit != "HU":
            raise InputError(f"{volume.name}: the values are in {volume.unit}, and HU are needed")
        prior = None if method == "nlm" else load_ct_prior(config.prior, device)
        if prior is not None:
            run.prior = {"name": prior.card.name, "sha256": prior.sha256}
        for sentence in (*volume.warnings, *_cautions(volume, prior)):
            run.warn(sentence)
        body = np.stack([body_mask(image) for image in volume.data])
        with run.clock("operator"):
            noise = estimate_noise(volume.data, body)
        usual = float(np.median(noise.std[:, 0].numpy()[body]))
        pieces = _pieces(run, volume, noise, usual, method, samples, prior, config, options.quiet)
        result = np.concatenate([piece["image"] for piece in pieces])
        reference = np.concatenate([piece["reference"] for piece in pieces])
        std = np.concatenate([piece["std"] for piece in pieces]) if "std" in pieces[0] else None
        run.nfe = max(int(piece["evaluations"]) for piece in pieces)
        run.estimator = "mean" if std is not None else "point" if prior is None else LEARNED[method].estimator
        run.misfit_chi2 = float(np.concatenate([piece["chi2"] for piece in pieces]).mean())
        familiarity = _familiar(run, result, prior)
        left = noise_left(usual, volume.data, result, body)
        run.extra |= {"unit": "HU", "noise_hu": round(usual, 2), "noise_left_hu": round(left, 2)}
        _write(run, volume, result, reference, std, noise, prior)
        facts = [
            f"The noise inside the body is estimated at {usual:.0f} HU; about {left:.0f} HU are left in the result.",
            "Edges or organs in the picture of what was taken out would be a fault; it should look like noise alone.",
        ]
        findings = Findings(None, run.estimator, familiarity, facts=facts, doubts=run.warnings)
        run.extra |= findings.record()
        if options.report:
            write_report(_report(run, findings, volume, result, reference, std, noise), run.output("report.html"))
    if not emit(run.record, options.json_to) and not options.quiet:
        click.echo(
            f"{options.output}: {method} ({run.estimator}), noise {usual:.0f} HU, about {left:.0f} HU left, "
            f"{run.record['seconds']['total']:.1f} s"
        )
        for sentence in run.warnings:
            click.echo(f"Note: {sentence}")


def _cautions(volume: Volume, prior: Prior | None) -> list[str]:
    pixel = volume.pixel_size_mm
    said = []
    if pixel > _COARSE_MM:
        said.append(
            f"The pixels of {pixel:.2g} mm are so coarse that tissue looks like noise: the noise may be overestimated."
        )
    if prior is not None and prior.card.pixel_size_mm is not None:
        low, high = prior.card.pixel_size_mm
        if not 0.8 * low <= pixel <= 1.25 * high:
            said.append(f"The pixels are {pixel:.2g} mm and the prior {prior.card.name} knows {low:g} to {high:g} mm.")
    return said


def _familiar(run: Run, result: NDArray[np.float32], prior: Prior | None) -> float | None:
    """How far the prior knows such pictures, by some of the slices; None where its file cannot tell."""
    known = None if prior is None else Familiarity.of(prior)
    if prior is None or known is None:
        return None
    picked = np.unique(np.linspace(0, len(result) - 1, min(len(result), _SLICES_ASKED)).round().astype(int))
    score = float(torch.cat([known.score(description(prior, result[k])) for k in picked]).median())
    if score > 1:
        run.warn(
            f"The pictures are unlike those the prior {prior.card.name} was trained on (score {score:.1f}, 1 is the edge of the "
            "usual): the result may be wrong in ways that the standard deviation does not show."
        )
    return score


def _pieces(
    run: Run,
    volume: Volume,
    noise: NoiseModel,
    usual: float,
    method: str,
    samples: int,
    prior: Prior | None,
    config: DenoiseConfig,
    quiet: bool,
) -> list[dict[str, NDArray[Any]]]:
    """All slices, a batch at a time; finished batches of an interrupted run are taken over."""
    digest = sha256_file(run.input_files[0][0])
    pieces = []
    with progress("Denoising", len(volume.data), quiet=quiet) as update:
        for first in range(0, len(volume.data), config.batch):
            rows = slice(first, min(first + config.batch, len(volume.data)))

            def compute(rows: slice = rows) -> dict[str, NDArray[Any]]:
                images = volume.data[rows]
                with run.clock("operator"):
                    reference = non_local_means(images, noise.select(rows))
                    y = torch.from_numpy(images)[:, None].to(run.device)
                    part = noise.select(rows).to(run.device)
                    if prior is None:
                        chi2 = part.measurement(y, 1.0).misfit_chi2(torch.from_numpy(reference)[:, None].to(run.device))
                        return {
                            "image": reference,
                            "reference": reference,
                            "chi2": chi2.cpu().numpy(),
                            "evaluations": np.asarray(0),
                        }
                    identities = [f"{digest} {k}" for k in range(rows.start, rows.stop)]
                    out = denoise(method, samples, y, part, usual, prior, config, identities, run.clock)
                arrays = {
                    "image": finite(out.image)[:, 0],
                    "reference": reference,
                    "chi2": out.chi2.cpu().numpy(),
                    "evaluations": np.asarray(out.evaluations),
                }
                return arrays if out.std is None else arrays | {"std": finite(out.std)[:, 0]}

            pieces.append(run.piece(f"slices-{rows.start}-{rows.stop}", compute))
            update(rows.stop)
    return pieces


def _write(
    run: Run,
    volume: Volume,
    result: NDArray[np.float32],
    reference: NDArray[np.float32],
    std: NDArray[np.float32] | None,
    noise: NoiseModel,
    prior: Prior | None,
) -> None:
    """The series as DICOM, and everything as NIfTI."""
    denoised = replace(volume, data=result)
    write_nifti(denoised, run.output("denoised.nii.gz"))
    write_nifti(replace(volume, data=reference), run.output("reference.nii.gz"))
    write_nifti(replace(volume, data=noise.std[:, 0].numpy()), run.output("noise.nii.gz"))
    if std is not None:
        write_nifti(replace(volume, data=std), run.output("std.nii.gz"))
    text = (
        f"diffsuite {__version__} denoise {run.method}, {run.nfe} evaluations, seed {run.seed}; noise estimated "
        f"{run.extra['noise_hu']} HU, left {run.extra['noise_left_hu']} HU"
    )
    model = "" if prior is None else f"{prior.card.name} {prior.sha256[:16]}"
    description = f"DIFFSUITE denoised {run.method} NOT FOR PRIMARY DIAGNOSIS"
    derivation = Derivation(description, text, __version__, model)
    files = write_series(denoised, run.output("dicom"), derivation)
    if std is not None:
        add_map(run, replace(volume, data=std), files, STD, derivation)


def _report(
    run: Run,
    findings: Findings,
    volume: Volume,
    result: NDArray[np.float32],
    reference: NDArray[np.float32],
    std: NDArray[np.float32] | None,
    noise: NoiseModel,
) -> Report:
    windows = {f"{name} W{width:g}/L{level:g}": (level, width) for name, (width, level) in WINDOWS.items()}
    usual, left = run.extra["noise_hu"], run.extra["noise_left_hu"]
    spread = {f"0..{3 * usual:.0f} HU": (1.5 * usual, 3 * usual)}
    stacks = [
        Stack("input", volume.data),
        Stack("denoised", result),
        Stack("reference (non-local means)", reference),
        Stack("what was taken out", volume.data - result, {f"±{3 * usual:.0f} HU": (0.0, 6 * usual)}),
        Stack("noise estimated", noise.std[:, 0].numpy(), spread),
    ]
    if std is not None:
        stacks.append(Stack("standard deviation", std, spread))
    facts: dict[str, Any] = {
        "method": run.method,
        "estimator": run.estimator,
        "network evaluations": run.nfe,
        "noise in (HU)": usual,
        "noise left (HU)": left,
        "misfit chi-square": round(run.misfit_chi2 or 0.0, 3),
        "slices": len(result),
        "pixel size (mm)": round(volume.pixel_size_mm, 4),
        "prior": "none" if run.prior is None else run.prior["name"],
        "seed": run.seed,
    }
    header: Any = volume.headers[len(volume.headers) // 2] if volume.headers else {}
    facts |= {name: header.get(tag) for tag, name in _DOSE.items() if header.get(tag) not in (None, "")}
    figure = Figure("Axial slices (HU)", stacks, windows, caption="Result beside its input and a classical filter.")
    return Report("CT denoising", findings.verdict, findings.reasons(), facts, figures=[figure])
