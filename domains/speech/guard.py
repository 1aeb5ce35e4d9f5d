"""The fidelity guard: what a result says about its own faithfulness, without a reference.

words     seconds in which a band came out louder, most of the sound was removed, or the draws disagree
removed   what was taken out follows the speech (`domains.speech.removed`)
sound     clipping of the recording, limiting of the result
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.speech.data import Audio
from domains.speech.removed import taken_out
from domains.speech.survey import Energies, buried_seconds, louder_seconds
from suite.run import Run
from suite.verdict import Findings

Metrics = Mapping[str, float | None]
Spread = Mapping[int, tuple[float, float]]
"""Variance of the draws and energy of their mean, by column."""

SPREAD_WARNED = 0.33
"""A second is named where the draws' standard deviation exceeds this share of their mean.

Calibrated on mixtures of the validation speakers at -5, 0 and 5 dB with three draws of storm (benchmarks/speech_warnings.py): one
in ten good seconds is named, and two in five lost ones. Draws of the bridge hardly differ and tell little.
"""
FOLLOWS = 0.33
"""A result is named where what was removed follows the speech by more than this, in a recording of 8 s or more.

Calibrated on mixtures of the validation speakers: above what is seen where nothing but the noise is taken out (0.29 at most), and
below what is seen where a band of the speech is cut (docs/speech.md). A shorter recording has fewer syllables to tell by: as many
standard deviations are needed.
"""


def follows_limit(seconds: float) -> float:
    """The largest `removed_follows_speech` that passes."""
    return FOLLOWS * math.sqrt(max(1.0, 8.0 / seconds))


@dataclass(frozen=True)
class Judged:
    """What the guard found in one file.

    Attributes:
        metrics: the numbers, among them how many seconds each test named.
        doubts: sentences about what may be wrong.
    """

    metrics: dict[str, float | None]
    doubts: list[str]


def words(name: str, before: Energies, after: Energies, spread: Spread, columns_per_second: float) -> Judged:
    """Where the result may say something else than the recording."""
    found = {
        "seconds_louder": (
            louder_seconds(before, after),
            "the result is louder than the recording in some band at {}; listen there",
        ),
        "seconds_buried": (
            buried_seconds(before, after),
            "most of the sound was removed at {}; words may be missing there",
        ),
        "seconds_unsure": (
            unsure_seconds(spread, columns_per_second),
            "the draws disagree at {}; words may have changed there",
        ),
    }
    metrics: dict[str, float | None] = {key: float(len(seconds)) for key, (seconds, _) in found.items()}
    if spread:
        variance, energy = np.sum(list(spread.values()), axis=0)
        metrics["spread_db"] = float(10 * np.log10(max(variance, 1e-30) / max(energy, 1e-30)))
    else:
        del metrics["seconds_unsure"]
    return Judged(metrics, [f"{name}: {text.format(_times(seconds))}." for seconds, text in found.values() if seconds])


def unsure_seconds(spread: Spread, columns_per_second: float) -> list[int]:
    """Seconds with sound in which the draws differ by more than `SPREAD_WARNED`."""
    seconds: dict[int, NDArray[np.float64]] = {}
    for column, pair in spread.items():
        second = int(column / columns_per_second)
        seconds[second] = seconds.get(second, np.zeros(2)) + pair
    loudest = max((float(pair[1]) for pair in seconds.values()), default=0.0)
    return [k for k, (v, e) in sorted(seconds.items()) if e > 1e-2 * loudest and v > SPREAD_WARNED**2 * e]


def removal(audio: Audio, result: Path, output: Path | None, *, judge: bool) -> Judged:
    """What was taken out of a recording, written to `output` where one is named, and whether it sounds like speech.

    Args:
        judge: False where a known degradation was undone, which goes with the speech by its nature.
    """
    name, removed = audio.path.name, taken_out(audio, result, output)
    metrics, doubts = removed.metrics(), []
    if removed.limited:
        doubts.append(f"removed/{name}: {removed.limited} samples exceeded full scale and were limited.")
    if judge:
        (value, band), limit = removed.speechlike(), follows_limit(audio.seconds)
        metrics["removed_follows_speech"] = value
        if value > limit:
            low, high = band.split("_")
            doubts.append(
                f"{name}: what was removed from {low} to {high} Hz comes and goes with the speech (correlation {value:.2f}, usual "
                f"is {limit:.2f} at most); speech may have been taken out, listen to it (--removed)."
            )
    return Judged(metrics, doubts)


def _times(seconds: list[int]) -> str:
    shown = ", ".join(f"{k} s" for k in seconds[:6])
    return shown + (f" and {len(seconds) - 6} more" if len(seconds) > 6 else "")


# --- the verdict ------------------------------------------------------------------------------------------------------


def findings_of(run: Run, doubts: list[str]) -> Findings:
    """The verdict on a run and what it rests on."""
    rows = [row for row in run.metrics.values() if row]
    facts = [sentence for tell in (_words, _removed, _clipping, _spread) if (sentence := tell(rows)) is not None]
    if run.estimator == "sample" and not any("spread_db" in row for row in rows):
        facts.append("No uncertainty: this is one draw; several (--samples N) tell where they disagree.")
    return Findings(run.misfit_chi2, run.estimator, facts=facts, doubts=doubts)


def _words(rows: list[Metrics]) -> str | None:
    rows = [row for row in rows if "seconds_buried" in row]
    if not rows:
        return None
    named = sum(value or 0 for row in rows for key, value in row.items() if key.startswith("seconds_"))
    asked = "a band came out louder" + (", the draws disagree" if "seconds_unsure" in rows[0] else "")
    return f"Words: {named:.0f} second(s) in which {asked} or most of the sound was removed."


def _removed(rows: list[Metrics]) -> str | None:
    levels = [value for row in rows if (value := row.get("removed_db")) is not None]
    if not levels:
        return None
    follows = [value for row in rows if (value := row.get("removed_follows_speech")) is not None]
    if not follows:
        return f"Changed: recording and result differ by {np.mean(levels):.1f} dB of the recording's energy."
    said = f"Removed: {np.mean(levels):.1f} dB of the recording's energy"
    return f"{said}; it goes with the speech by a correlation of {max(follows):.2f} at most, noise alone by up to {FOLLOWS:g}."


def _clipping(rows: list[Metrics]) -> str | None:
    clipped = [value for row in rows if (value := row.get("clipped_percent")) is not None]
    return f"Clipping: {max(clipped):.2g} % of the samples at most." if clipped else None


def _spread(rows: list[Metrics]) -> str | None:
    spreads = [value for row in rows if (value := row.get("spread_db")) is not None]
    return f"Spread of the draws: {max(spreads):.1f} dB at most, over their mean." if spreads else None
