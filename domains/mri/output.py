"""What a reconstruction leaves: NIfTI images with a JSON sidecar, DICOM series, and the page of pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from domains.mri.data import write_nifti
from domains.mri.dicom_write import Derivation, write_series
from domains.mri.pipeline import DETAIL, Reconstruction
from domains.mri.problem import Problem, to_numpy
from suite import __version__
from suite.prior import Prior
from suite.records import write_json
from suite.report import Figure, Report, Stack
from suite.run import Run
from suite.trust import interval_factor
from suite.verdict import Findings

EXPLAINED = (0.8, 1.3)
"""Chi-square of images that explain the data within their noise; a smaller one says that the noise is taken for too large."""


def write_outputs(run: Run, problem: Problem, result: Reconstruction, prior: Prior | None, *, dicom: bool) -> None:
    """`magnitude`, `phase`, `reference`, with samples `std`, `lower`, `upper`, `share` (NIfTI), `magnitude.json`, DICOM series."""
    images = {
        "magnitude": result.image.abs(),
        "phase": result.image.angle(),
        "reference": result.reference.abs(),
    }
    if result.std is not None:
        images["std"] = result.std
        half = _interval(run, prior) * result.std
        images |= {"lower": (images["magnitude"] - half).clamp_min(0), "upper": images["magnitude"] + half}
    if result.share is not None:
        images["share"] = result.share
    volumes = {name: problem.volume(torch.from_numpy(to_numpy(values))) for name, values in images.items()}
    for name, volume in volumes.items():
        write_nifti(volume, run.output(f"{name}.nii.gz"))
    write_json(sidecar(run, problem, prior), run.output("magnitude.json"))
    if not dicom:
        return
    label = f"DIFFSUITE {run.method} R{problem.acceleration:.1f}"
    text = (
        f"diffsuite {__version__} {run.method}, {run.nfe} evaluations, seed {run.seed}, acceleration "
        f"{problem.acceleration:.2f}, misfit chi-square {run.misfit_chi2 or 0:.2f}"
    )
    model = "" if prior is None else f"{prior.card.name} {prior.sha256[:16]}"
    for name, part in (("magnitude", "M"), ("phase", "P"), ("std", "STD")):
        if name in volumes:
            said = f"{label} {name} NOT FOR PRIMARY DIAGNOSIS"[:64]
            write_series(volumes[name], run.output(f"dicom/{name}"), Derivation(said, text, __version__, model, part))


def _interval(run: Run, prior: Prior | None) -> float:
    """Half-width of the 90 % interval over the standard deviation, by the prior's calibration where it has one."""
    found = {} if prior is None else prior.card.calibration.get("intervals", {})
    scale = float(found.get("scale", 1.0))
    run.extra["intervals"] = {"level": 0.9, "scale": scale, "calibrated_on": found.get("data", [])}
    return scale * interval_factor(run.config.samples)


def sidecar(run: Run, problem: Problem, prior: Prior | None) -> dict[str, Any]:
    """A BIDS sidecar: how the image was made, in BIDS's names where it has one."""
    return {
        "Modality": "MR",
        "ImageType": ["DERIVED", "PRIMARY", "M", "DIFFSUITE"],
        "DeepLearning": prior is not None,
        "DeepLearningDetails": None if prior is None else f"{prior.card.name} sha256 {prior.sha256}",
        "ReconMethod": run.method,
        "ReconMethodImplementer": f"diffsuite {__version__}",
        "Estimator": run.estimator,
        "NetworkEvaluations": run.nfe,
        "ParallelReductionFactor": round(problem.acceleration, 4),
        "NumberReceiverCoils": problem.kspace.coils,
        "NoiseKnown": problem.noise_known,
        "MisfitChi2": run.misfit_chi2,
        "Seed": run.seed,
        "PhaseUnits": "rad",
    }


def findings_of(run: Run, result: Reconstruction, prior: Prior | None) -> Findings:
    """What speaks for and against the result.

    A classical method fits some of the noise, and nothing is known of how much, so its misfit has no lower end.
    """
    share = None if result.share is None else float(result.share[result.share > 0].mean())
    calibrated = None if result.std is None else prior is not None and "intervals" in prior.card.calibration
    return Findings(
        run.extra["misfit_chi2_adjusted"],
        run.estimator,
        prior_share=share,
        calibrated=calibrated,
        chi2_range=(EXPLAINED[0] if run.method == "dds" else 0.0, EXPLAINED[1]),
        doubts=run.warnings,
    )


def report_of(run: Run, problem: Problem, result: Reconstruction, findings: Findings) -> Report:
    """Verdict with its reasons, pictures and facts on one page."""
    shown = {
        name: _stack(problem, values)
        for name, values in (("recon", result.image.abs()), ("ref", result.reference.abs()))
    }
    high = float(np.percentile(shown["recon"], 99.5)) or 1.0
    windows = {"full": (high / 2, high), "low signal": (high / 6, high / 3)}
    spread = high / 5
    stacks = [
        Stack("reconstruction", shown["recon"]),
        Stack(
            "reference (" + ("zero-filled" if run.method in ("zero_filled", "sense") else "CG-SENSE") + ")",
            shown["ref"],
        ),
        Stack("difference", shown["recon"] - shown["ref"], {f"±{spread / 2:.3g}": (0.0, spread)}),
        Stack("phase", _stack(problem, result.image.angle()), {"±π": (0.0, 2 * math.pi)}),
    ]
    if result.std is not None:
        stacks.append(
            Stack("standard deviation", _stack(problem, result.std), {f"0..{spread / 2:.3g}": (spread / 4, spread / 2)})
        )
    if result.share is not None:
        text = f"prior's share of details of {DETAIL:g} of the 99th percentile"
        stacks.append(Stack(text, _stack(problem, result.share), {"0..1": (0.5, 1.0)}))
    facts = {
        "method": run.method,
        "estimator": run.estimator,
        "network evaluations": run.nfe,
        "acceleration (achieved)": round(problem.acceleration, 2),
        "coils": problem.kspace.coils,
        "slices": int(shown["recon"].shape[0]),
        "misfit chi-square": round(run.misfit_chi2 or 0.0, 3),
        "the same, over what noise alone would leave": round(run.extra["misfit_chi2_adjusted"], 3),
        "noise": "known" if problem.noise_known else "estimated",
        "prior": "none" if run.prior is None else run.prior["name"],
        "seed": run.seed,
    }
    figure = Figure(
        "Slices", stacks, windows, caption="Learned result beside the classical reference; file's own axes."
    )
    return Report("MRI reconstruction", findings.verdict, findings.reasons(), facts, figures=[figure])


def _stack(problem: Problem, values: torch.Tensor) -> np.ndarray:
    data = problem.volume(values).data
    return np.asarray(data.reshape(-1, *data.shape[-2:]))
