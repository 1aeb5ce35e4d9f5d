"""The pages of `weather generate` and `weather evaluate`: maps and curves of members, and the diagrams of a verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from domains.weather.containers import Ensemble
from domains.weather.data import read_ensemble
from suite.chart import Chart, Series
from suite.report import Figure, Report, Stack
from suite.run import Run
from suite.verdict import Findings

SHOWN = 6  # members as maps
DRAWN = 50  # members as curves
MOST_READ = 20_000_000  # values of the first date that a page is made of


# --- verification -----------------------------------------------------------------------------------------------------


def diagrams(result: dict[str, Any]) -> list[Chart]:
    """Rank histogram, spread against error, reliability and spectra of an evaluation; the first lead's where there are several."""
    curves = result["curves"][0]
    out = []
    if "rank_histogram" in curves:
        height = np.asarray(curves["rank_histogram"])
        ranks = np.arange(len(height))
        series = [Series("", ranks, height, "bars"), Series("", ranks[[0, -1]], [1, 1], "guide")]
        out.append(
            Chart("Rank histogram (flat: calibrated)", "rank of the truth", "frequency / nominal", series, zero=True)
        )
    if "spread_skill" in curves:
        spread, rmse = (np.asarray(curves["spread_skill"][k]) for k in ("spread", "rmse"))
        line = [min(spread.min(), rmse.min()), max(spread.max(), rmse.max())]
        series = [Series("", spread, rmse), Series("", spread, rmse, "points"), Series("", line, line, "guide")]
        out.append(Chart("Spread and skill", "spread / climatology", "error of the mean / climatology", series))
    for q, what in (("q05", "below the 5 % quantile"), ("q95", "above the 95 % quantile")):
        curve = curves.get(f"reliability_{q}")
        if curve is not None:
            series = [Series("", [0, 1], [0, 1], "guide"), Series("", curve["probability"], curve["frequency"])]
            series.append(Series("", curve["probability"], curve["frequency"], "points"))
            out.append(Chart(f"Reliability, {what}", "forecast probability", "observed frequency", series))
    if "spectrum" in curves:
        s = curves["spectrum"]
        series = [Series("members", s["wavenumber"], s["forecast"]), Series("truth", s["wavenumber"], s["truth"])]
        out.append(Chart("Spectrum along the longitudes", "wavenumber", "power", series, log="xy"))
    return out


def evaluation_report(result: dict[str, Any]) -> Report:
    """The page of `weather evaluate`."""
    metrics, spans = result["metrics"], result["intervals"]
    rows = []
    for name, value in metrics.items():
        low, high = spans.get(name, (None, None))
        rows.append({"score": name, "value": value, "5 %": low, "95 %": high})
    ratio = metrics.get("spread_skill")
    low, high = spans.get("spread_skill", (ratio, ratio))
    doubts = []
    if ratio is not None and not (low <= 1.05 and high >= 0.95):
        much = "too little" if ratio < 1 else "too much"
        doubts.append(f"There is {much} spread for the error of the mean: the ratio is {ratio:.3f}, and 1 is right.")
    settings = {k: v for k, v in result["settings"].items() if k != "notes"}
    facts = {
        k: ", ".join(map(str, v)) if isinstance(v, list) else str(getattr(v, "name", v)) for k, v in settings.items()
    }
    notes = result["settings"]["notes"]
    said = Findings(estimator=None, doubts=doubts)
    return Report(
        "Weather: verification", said.verdict, said.reasons(), facts, rows, notes, charts=diagrams(result)
    )  # fmt: skip


# --- members ----------------------------------------------------------------------------------------------------------


def generation_report(output: Path, seeds: Ensemble, run: Run, findings: Findings) -> Report:
    """The page of `weather generate`: the first date and lead of every field."""
    made = read_ensemble(output)
    most = max(1, MOST_READ // (len(made.step) * len(made.channels) * made.grid.shape[0] * made.grid.shape[1]))
    members = made.values(slice(0, 1), slice(0, most))[0, 0]
    given = seeds.values(slice(0, 1))[0, 0] if seeds.has_number else seeds.values(slice(0, 1))[0, 0][:0]
    figures, charts = [], []
    for c, channel in enumerate(made.channels):
        title = f"{channel.label} [{channel.units or 'no unit'}], {str(made.time[0])[:16]} +{made.lead_hours()[0]:g} h"
        if min(made.grid.shape) > 1:
            figures.append(_maps(title, given[:, c], members[:, c], made))
        else:
            charts.append(_plume(title, given[:, c, 0], members[:, c, 0]))
        charts += _spectra(channel.label, given[:, c], members[:, c])
    facts = {
        "method": run.method, "members": run.extra["members"], "seeds used": run.extra["seeds_used"],
        "model": "none" if run.prior is None else run.prior["name"], "seed": run.seed, "network evaluations": run.nfe,
    }  # fmt: skip
    return Report(
        "Weather: members", findings.verdict, findings.reasons(), facts, charts=charts, figures=figures
    )  # fmt: skip


def _maps(title: str, seeds: NDArray[Any], members: NDArray[Any], made: Ensemble) -> Figure:
    """Mean and spread of the members, the seeds and some members beside each other, north on top."""
    low, high = np.nanquantile(members, [0.01, 0.99])
    window = {"values": (float(low + high) / 2, float(high - low) or 1.0)}
    spread = members.std(0)
    wide = {"spread": (float(np.nanmax(spread)) / 2, float(np.nanmax(spread)) or 1.0)}
    stacks = [Stack(f"seed {i}", field) for i, field in enumerate(seeds[:2])]
    stacks += [Stack("mean of the members", members.mean(0)), Stack("spread", spread, wide)]
    stacks += [Stack(f"member {made.number[i]}", members[i]) for i in range(min(SHOWN, len(members)))]
    return Figure(title, stacks, window, marks=("W", "E", "N", "S"))


def _plume(title: str, seeds: NDArray[Any], members: NDArray[Any]) -> Chart:
    """Members along a ring or of a station: curves of its points, or one point."""
    points = np.arange(members.shape[-1])
    style: Literal["line", "points"] = "line" if len(points) > 1 else "points"
    bands = [(0.05, "5 %"), (0.5, "median of the members"), (0.95, "95 %")]
    series = [Series(label, points, np.quantile(members[:DRAWN], q, 0), style) for q, label in bands]
    series += [Series(f"seed {i}", points, field, style) for i, field in enumerate(seeds[:2])]
    return Chart(title, "point", "value", series)


def _spectra(label: str, seeds: NDArray[Any], members: NDArray[Any]) -> list[Chart]:
    """Mean power along the longitudes of members and seeds; none for short axes or holes."""
    if members.shape[-1] < 8 or not (np.isfinite(members).all() and len(seeds) and np.isfinite(seeds).all()):
        return []

    def power(x: NDArray[Any]) -> NDArray[Any]:
        out: NDArray[Any] = (np.abs(np.fft.rfft(x - x.mean(-1, keepdims=True), axis=-1)) ** 2).mean((0, 1))[1:]
        return out

    series = [
        Series(name, np.arange(1, members.shape[-1] // 2 + 1), power(x))
        for name, x in (("members", members), ("seeds", seeds))
    ]
    return [Chart(f"Spectrum of {label}", "wavenumber", "power", series, log="xy")]
