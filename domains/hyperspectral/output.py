"""What a denoising leaves beside the cube: the table of bands, the sentences about them, and the page of pictures."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from domains.hyperspectral.containers import Cube
from domains.hyperspectral.rebuild import Denoised
from suite.report import Figure, Report, Stack
from suite.run import Run
from suite.verdict import Findings

NOISY = 1.0
"""Bands whose signal deviates less than the noise are called noisy."""

SURE = 5.0
"""Stripes of fewer standard errors are taken out without a word: some of many columns are chance."""

EXPLAINED = (0.8, 1.2)
STRUCTURE, SPARSE = 0.1, 0.5
"""Mean squares of the residual that are taken for noise; its correlation and the share of lost values that ask for a look."""


def band_table(cube: Cube, result: Denoised) -> list[dict[str, Any]]:
    """One row per band: `band` (from 0), `wavelength` (nm), `noise` (deviation, stored units), `snr`, `state`.

    snr is the deviation of the noise-free band over that of its noise. state: `good`, `flagged` (bad in the file, untouched),
    `empty` (no values, or a constant; untouched), or what was restored: `noisy`, `stripes`, `dead lines`, `impulses`.
    """
    model = result.model
    slot = np.full(cube.shape[2], -1)
    slot[model.used] = np.arange(int(model.used.sum()))
    rows: list[dict[str, Any]] = []
    for band, k in enumerate(slot):
        wavelength = "" if cube.wavelengths is None else f"{cube.wavelengths[band]:.6g}"
        row: dict[str, Any] = {"band": band, "wavelength": wavelength, "noise": "", "snr": ""}
        if k < 0:
            flagged = cube.good is not None and not cube.good[band]
            rows.append(row | {"state": "flagged" if flagged else "empty"})
            continue
        snr = float(model.signal[k] / model.sigma[k])
        row |= {"noise": f"{model.sigma[k]:.6g}", "snr": f"{snr:.4g}"}
        rows.append(row | {"state": "+".join(_faults(result, int(k), snr)) or "good"})
    return rows


def _faults(result: Denoised, k: int, snr: float) -> list[str]:
    model = result.model
    dead = float(model.dead[:, k].mean())
    error = 1.2533 * math.sqrt(len(model.stripes) / model.pixels)  # of a column's median, in deviations of the noise
    faults = {
        "noisy": snr < NOISY,
        "stripes": bool((np.abs(model.stripes[:, k]) > max(0.5, SURE * error) * model.sigma[k]).any()),
        "dead lines": dead > 0,
        "impulses": result.lost[k] - dead > 0.003 and bool(len(model.stuck[k]) or model.outliers[k]),
    }
    return [name for name, there in faults.items() if there]


def write_bands(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["band", "wavelength", "noise", "snr", "state"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def restored(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences about bands that no flag names and that were restored all the same."""
    said = []
    for fault in ("stripes", "dead lines", "impulses", "noisy"):
        bands = [row["band"] for row in rows if fault in row["state"].split("+")]
        if bands:
            what = "more noise than signal" if fault == "noisy" else fault
            said.append(f"Bands with {what}, not flagged in the file, were restored: {spans(bands)}.")
    return said


def untouched(rows: list[dict[str, Any]], result: Denoised) -> list[str]:
    """Sentences about bands that stayed as they were, and missing values that did not."""
    kept = [row["band"] for row in rows if row["state"] in ("flagged", "empty")]
    said = [f"Bands flagged bad or without values were left as they are: {spans(kept)}."] if kept else []
    if result.repaired:
        said.append(f"{result.repaired} values that were missing were filled.")
    return said


def spans(numbers: list[int]) -> str:
    """`[0, 1, 2, 5]` -> `0-2, 5`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def findings_of(result: Denoised, warnings: list[str], known: list[str], calibrated: bool | None) -> Findings:
    """What speaks for and against the result.

    Args:
        warnings: of the run; those in `known` are no reason to look.
        calibrated: None without intervals.
    """
    structure = max(map(abs, result.whiteness))
    white = f"Neighbouring values of what was removed correlate by {structure:.2f}; noise alone gives 0."
    facts, doubts = list(known), [sentence for sentence in warnings if sentence not in known]
    (doubts if structure > STRUCTURE else facts).insert(0, white)
    if result.lost.mean() > SPARSE:
        doubts.append(f"{100 * result.lost.mean():.0f} % of the values told nothing and come from the other bands.")
    return Findings(
        result.chi2,
        result.estimate.estimator,
        calibrated=calibrated,
        chi2_range=EXPLAINED,
        facts=facts,
        doubts=doubts,
    )


def report_of(run: Run, cube: Cube, result: Denoised, rows: list[dict[str, Any]], findings: Findings) -> Report:
    """The verdict, some bands before and after, and the noise of each band."""
    bands = _shown(rows)
    before = cube.values(bands=bands).transpose(2, 0, 1)
    after = np.where(np.isfinite(before), result.data[..., bands].transpose(2, 0, 1), np.nan)
    low, high = (np.nanpercentile(after, q, axis=(1, 2), keepdims=True) for q in (1, 99))
    extent = np.maximum(high - low, 1e-12)
    windows = {"1st to 99th percentile": (0.5, 1.0)}
    stacks = [
        Stack("input", (before - low) / extent),
        Stack("denoised", (after - low) / extent),
        Stack("removed", (before - after) / extent, {"same scale": (0.0, 1.0)}),
    ]
    if result.std is not None:
        spread = result.std[..., bands].transpose(2, 0, 1) / extent
        stacks.append(Stack("standard deviation", spread, {"tenfold": (0.05, 0.1)}))
    facts = {
        "method": run.method,
        "estimator": run.estimator,
        "network evaluations": run.nfe,
        "size": " x ".join(map(str, cube.shape)),
        "rank of the subspace": result.model.rank,
        "residual chi-square": round(result.chi2, 3),
        "residual correlation (along, across)": ", ".join(f"{c:.3f}" for c in result.whiteness),
        "prior": "none" if run.prior is None else run.prior["name"],
        "seed": run.seed,
    }
    caption = f"Bands {', '.join(map(str, bands))}; each scaled by the percentiles of its result."
    figure = Figure("Bands", stacks, windows, caption=caption)
    shown = [rows[band] for band in bands]
    verdict, reasons = findings.verdict, findings.reasons()
    return Report("Hyperspectral denoising", verdict, reasons, facts, shown, figures=[figure])


def _shown(rows: list[dict[str, Any]], count: int = 9) -> list[int]:
    """Evenly spread used bands, and those of the lowest signal-to-noise ratio."""
    used = [row["band"] for row in rows if row["noise"]]
    even = [used[round(i)] for i in np.linspace(0, len(used) - 1, min(count, len(used)))]
    worst = sorted(used, key=lambda band: float(rows[band]["snr"]))[:3]
    return sorted({*even, *worst})
