"""What a run leaves: the cine in its own format, the parts that add up, and the page of pictures."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.ultrasound.containers import Cine
from domains.ultrasound.data import write_cine
from domains.ultrasound.metrics import against_input
from domains.ultrasound.physics import compress, envelope
from domains.ultrasound.pipeline import BRIGHT, Dehazed
from suite.report import Figure, Report, Stack
from suite.run import Run
from suite.verdict import Findings

MOST_CHANGED, MOST_ELSEWHERE, MOST_FLICKER = 0.3, 2.0, 1.002
"""A result counts as plausible while haze covers less than this share of the sector, and elsewhere the mean change stays below so
many grey levels of 255, and it does not flicker more than the input (but for rounding)."""


def cine_name(cine: Cine) -> str:
    """The output's name: `dehazed` with the source's suffix, `dehazed_cine.npz` for `.npz`."""
    suffix = cine.source.suffix.lower() or ".dcm"
    return "dehazed_cine.npz" if suffix == ".npz" else f"dehazed{suffix}"


def shown(cine: Cine, data: NDArray[Any], white: float | None = None) -> NDArray[np.float64]:
    """Grey levels 0..255 of data in the units of the cine; echoes by their envelope, `white` shown as 255."""
    if cine.domain == "grey":
        return np.clip(255.0 * (data.astype(np.float64) - cine.black) / (cine.white - cine.black), 0, 255)
    seen = np.abs(data) if cine.domain == "envelope" else envelope(data, cine.domain)
    white = white or float(np.percentile(seen, BRIGHT)) or 1.0
    return np.clip(255.0 * compress(seen.astype(np.float64) / white, cine.dynamic_range_db), 0, 255)


def white_of(cine: Cine) -> float | None:
    """The envelope of echoes that is shown white; None for grey pictures."""
    if cine.domain == "grey":
        return None
    seen = np.abs(cine.data) if cine.domain == "envelope" else envelope(cine.data, cine.domain)
    return float(np.percentile(seen, BRIGHT)) or 1.0


def write_outputs(run: Run, cine: Cine, result: Dehazed) -> dict[str, float | None]:
    """`dehazed.*` and `dehazed.npz`; returns the figures that need no truth."""
    write_cine(cine, result.output, run.output(cine_name(cine)))
    notes = cine.source.with_suffix(".yml")
    if cine.kind == "clarius" and notes.is_file():
        shutil.copyfile(notes, run.output("dehazed.yml"))
    arrays = {
        "dehazed": result.dehazed,
        "haze": result.haze,
        "input": result.input,
        "reference": result.reference,
        "sector": result.sector,
        "domain": np.asarray(result.domain),
        "dynamic_range_db": np.asarray(cine.dynamic_range_db),
    }
    if result.std is not None:
        arrays["std"] = result.std
    if result.half_width is not None:
        arrays["half_width"] = result.half_width
    with run.output("dehazed.npz").open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    white = white_of(cine)
    return against_input(shown(cine, result.output, white), shown(cine, cine.data, white), result.sector)


def doubts(metrics: dict[str, float | None]) -> list[str]:
    """What of a result looks wrong, a sentence each."""
    found = []
    share, elsewhere, flicker = (metrics.get(name) for name in ("haze_share", "change_elsewhere", "flicker_ratio"))
    if share is not None and share > MOST_CHANGED:
        found.append(
            f"{100 * share:.0f} % of the sector changed by more than 12 grey levels, more than haze usually covers."
        )
    if elsewhere is not None and elsewhere > MOST_ELSEWHERE:
        found.append(
            f"Outside the haze the mean change is {elsewhere:.1f} grey levels; up to {MOST_ELSEWHERE:g} is expected."
        )
    if flicker is not None and flicker > MOST_FLICKER:
        found.append(f"The result flickers {flicker:.3f} times as much as the input.")
    return found


def findings_of(run: Run, calibrated: bool | None) -> Findings:
    """The verdict on a run and what it rests on; `calibrated`: whether there are intervals, and they are measured."""
    share, elsewhere, flicker = (run.metrics.get(name) for name in ("haze_share", "change_elsewhere", "flicker_ratio"))
    facts = []
    if share is not None:
        facts.append(f"Haze: {100 * share:.1f} % of the sector changed by more than 12 grey levels of 255.")
    if elsewhere is not None:
        facts.append(f"Elsewhere: a mean change of {elsewhere:.2f} grey levels; up to {MOST_ELSEWHERE:g} is expected.")
    if flicker is not None:
        facts.append(f"Flicker: {flicker:.3f} of the energy of the input's frame differences.")
    return Findings(None, run.estimator, calibrated=calibrated, facts=facts, doubts=run.warnings)


def report_of(run: Run, findings: Findings, cine: Cine, result: Dehazed) -> Report:
    """Input, result, haze and classical reference on one page."""
    white = white_of(cine)
    before, after = shown(cine, cine.data, white), shown(cine, result.output, white)
    beside = shown(cine, _file_units(cine, result.reference, result.domain), white)
    windows = {"full": (127.5, 255.0), "dark": (64.0, 128.0)}
    stacks = [
        Stack("input", before),
        Stack("dehazed", after),
        Stack("haze taken off", before - after, {"0..128": (64.0, 128.0)}),
        Stack("classical (background)", beside),
    ]
    spacing = cine.spacing_mm
    aspect = (
        spacing[0] / spacing[1]
        if spacing
        else max(before.shape[1:]) / before.shape[1]
        if cine.domain != "grey"
        else 1.0
    )
    facts = {
        "method": run.method,
        "estimator": run.estimator,
        "network evaluations": run.nfe,
        "frames": cine.frames,
        "frames per second": None if cine.frame_time_ms is None else round(1000 / cine.frame_time_ms, 2),
        "tissue and haze add as": result.domain,
        "prior": "none" if run.prior is None else run.prior["name"],
        "seed": run.seed,
    }
    rows = [{"figure": name, "value": value} for name, value in run.metrics.items()]
    figure = Figure("Frames", stacks, windows, caption="Grey levels 0..255; not for primary diagnosis.", aspect=aspect)
    title = "Ultrasound dehazing"
    return Report(title, findings.verdict, findings.reasons(), facts, rows, figures=[figure])


def _file_units(cine: Cine, signal: NDArray[Any], domain: str) -> NDArray[Any]:
    if cine.domain == "grey" and domain == "envelope":
        return cine.black + (cine.white - cine.black) * compress(signal.astype(np.float64), cine.dynamic_range_db)
    return signal
