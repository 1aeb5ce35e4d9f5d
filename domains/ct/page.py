"""What a reconstruction says about its own trustworthiness, and its page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from domains.ct.cone_problem import ConeProblem
from domains.ct.metrics import WINDOWS
from domains.ct.pipeline import DETAIL_HU, Reconstruction
from domains.ct.problem import Problem
from suite.doubts import LIMIT, beyond, disagreement
from suite.prior import Prior
from suite.report import Figure, Report, Stack
from suite.run import Run
from suite.trust import interval_factor
from suite.verdict import Findings

_OBJECT = 0.3  # of the attenuation of water: above it there is something
_NORMAL_90 = 1.645


@dataclass(frozen=True)
class Doubts:
    """What a run found out about its result.

    Attributes:
        findings: for verdict, report and record.
        interval: half-width of the 90 % interval over the standard deviation; 0 without one.
        disagreement: with the classical reference, in standard deviations, `(S, 1, ny, nx)`, where maps are wanted.
    """

    findings: Findings
    interval: float
    disagreement: Tensor | None


def doubts_of(run: Run, result: Reconstruction, mu_water: float | None, prior: Prior | None, samples: int) -> Doubts:
    """Misfit, intervals (noted in the run's record), the prior's share and the disagreement with the reference."""
    interval, calibrated = 0.0, None
    if result.std is not None:
        found = {} if prior is None else prior.card.calibration.get("intervals", {})
        scale, calibrated = float(found.get("scale", 1.0)), bool(found)
        interval = scale * interval_factor(samples)
        run.extra["intervals"] = {"level": 0.9, "scale": scale, "calibrated_on": found.get("data", [])}
    far = share = told = None
    if result.share is not None or result.wander is not None:
        some = result.reference.flatten()[:: max(1, result.reference.numel() // 1_000_000)]
        objects = result.reference > _OBJECT * (float(some.quantile(0.99)) if mu_water is None else mu_water)
        sigma = None if result.std is None else interval / _NORMAL_90 * result.std
        far = disagreement(result.image, result.reference, sigma, objects)
        told = beyond(far, objects)
        share = None if result.share is None else float(result.share.mean())
    findings = Findings(run.misfit_chi2, run.estimator, None, share, told, calibrated, _reference(run))
    return Doubts(findings, interval, far)


def in_unit(values: Tensor, mu_water: float | None, *, difference: bool = False) -> Tensor:
    """Attenuation in 1/mm as HU where that of water is known."""
    if mu_water is None:
        return values
    return 1000 * (values / mu_water - (0 if difference else 1))


def _reference(run: Run) -> str:
    return "FBP" if run.prior is None else "TV reference"


def reconstruction_page(
    run: Run, problem: Problem | ConeProblem, result: Reconstruction, doubts: Doubts, mu_water: float | None
) -> Report:
    """Verdict with its reasons, pictures, facts and warnings on one page."""
    cone = isinstance(problem, ConeProblem)
    unit = "1/mm" if mu_water is None else "HU"
    facts = {
        "method": run.method,
        "estimator": run.estimator,
        "network evaluations": run.nfe,
        "views": problem.geometry.n_views,
        "geometry": problem.geometry.kind,
        "slices": problem.slices,
        "pixel size (mm)": round(problem.geometry.pixel_size_mm, 4),
        "misfit chi-square": round(run.misfit_chi2 or 0.0, 3),
        "unit": unit,
        "prior": "none" if run.prior is None else run.prior["name"],
        "seed": run.seed,
    }
    figure = _figure(result, doubts, mu_water, "FDK" if cone else "FBP" if run.prior is None else "TV")
    verdict, reasons = doubts.findings.verdict, doubts.findings.reasons()
    return Report("CT reconstruction", verdict, reasons, facts, figures=[figure])


def _figure(result: Reconstruction, doubts: Doubts, mu_water: float | None, reference_name: str) -> Figure:
    recon, reference = (in_unit(v, mu_water)[:, 0].numpy() for v in (result.image, result.reference))
    if mu_water is None:
        low, high = np.percentile(recon, (1, 99.5))
        windows = {"full": (float((low + high) / 2), float(high - low) or 1.0)}
        spread = float(high - low) / 5 or 1.0
    else:
        windows = {f"{name} W{width:g}/L{level:g}": (level, width) for name, (width, level) in WINDOWS.items()}
        spread = 200.0
    stacks = [
        Stack("reconstruction", recon),
        Stack(f"reference ({reference_name})", reference),
        Stack("difference", recon - reference, {f"±{spread / 2:g}": (0.0, spread)}),
    ]
    deviations = {f"0..{spread / 2:g}": (spread / 4, spread / 2)}
    for label, values in (
        ("standard deviation", result.std),
        ("wander of the estimate in the last steps", result.wander),
    ):
        if values is not None:
            stacks.append(Stack(label, in_unit(values, mu_water, difference=True)[:, 0].numpy(), deviations))
    if result.share is not None:
        share = result.share[:, 0].numpy()
        stacks.append(Stack(f"prior's share of details of {DETAIL_HU:g} HU", share, {"0..1": (0.5, 1.0)}))
    if doubts.disagreement is not None:
        z = torch.where(doubts.disagreement.abs() > LIMIT, doubts.disagreement, 0.0)[:, 0].numpy()
        stacks.append(Stack(f"disagreement beyond {LIMIT:g} deviations", z, {"±6": (0.0, 12.0)}))
    caption = "Learned result beside the classical reference; overlays of doubt in the same order of slices."
    return Figure(f"Axial slices ({'1/mm' if mu_water is None else 'HU'})", stacks, windows, caption=caption)
