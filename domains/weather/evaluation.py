"""`weather evaluate`: a forecast against the truth, date by date, with what the figures mean beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.weather.climate import season_of
from domains.weather.containers import Ensemble
from domains.weather.data import matching_dates, truth_values
from domains.weather.diagrams import curves
from domains.weather.metrics import Reference, intervals, reference_of, scores_per_date, summary
from suite.errors import InputError

VALUES = 4_000_000  # forecast values that are held at once


def evaluate(forecast: Ensemble, truth: Ensemble, past: Ensemble | None) -> dict[str, Any]:
    """`{"metrics", "intervals", "by_lead", "curves", "settings"}`; metrics are means over the leads, curves are by lead.

    Raises:
        InputError: no common dates, steps that do not match, or a truth without a finite value.
    """
    first, second = matching_dates(forecast, truth)
    goal = truth_values(truth, second, forecast)
    if not np.isfinite(goal).any():
        raise InputError(f"{truth.path}: holds nothing but NaN on the dates of {forecast.path}.")
    notes: list[str] = []
    members = max(1, len(forecast.number))
    weights = forecast.grid.weights()
    per_lead: list[dict[str, float]] = []
    spans: list[dict[str, list[float]]] = []
    drawn: list[dict[str, Any]] = []
    for step in range(len(forecast.step)):
        reference = _reference(forecast, goal, first, step, past)
        parts = _scores(forecast, goal, first, step, weights, reference)
        per_lead.append(summary(parts, members))
        spans.append(intervals(parts, members))
        drawn.append(curves(parts, members))
    names = per_lead[0]
    metrics = {name: float(np.mean([lead[name] for lead in per_lead])) for name in names}
    if members == 1:
        notes.append("One member: the CRPS is the absolute error, and there is no spread to judge.")
    if len(first) < len(forecast.time):
        notes.append(f"{len(forecast.time) - len(first)} dates of the forecast have no truth and were left out.")
    notes.append("crps scores the ensemble as issued, crps_fair one of infinite size: compare like with like.")
    settings = {
        "forecast": forecast.path,
        "truth": truth.path,
        "climatology": reference.source,
        "dates": len(first),
        "members": members,
        "leads_hours": forecast.lead_hours(),
        "grid": forecast.grid.describe(),
        "area_weighted": True,
        "variables": [c.label for c in forecast.channels],
        "notes": notes,
    }
    by_lead = per_lead if len(per_lead) > 1 else []
    return {
        "metrics": metrics,
        "intervals": spans[0] if len(spans) == 1 else {},
        "by_lead": by_lead,
        "curves": drawn,
        "settings": settings,
    }


def _reference(
    forecast: Ensemble, goal: NDArray[Any], first: NDArray[Any], step: int, past: Ensemble | None
) -> Reference:
    weights = forecast.grid.weights()
    now = season_of(forecast.valid_time()[first, step]).numpy()
    if past is None:
        return reference_of(goal[:, step], now, weights, now, "the truth on these dates themselves")
    lead = step if len(past.step) == len(forecast.step) else 0
    fields = past.values()
    flat = fields[:, lead].reshape(-1, *fields.shape[3:])
    season = np.repeat(season_of(past.valid_time()[:, lead]).numpy(), fields.shape[2], 0)
    return reference_of(flat, season, weights, now, past.path.name)


def _scores(
    forecast: Ensemble,
    goal: NDArray[Any],
    first: NDArray[Any],
    step: int,
    weights: NDArray[np.float64],
    reference: Reference,
) -> dict[str, NDArray[np.float64]]:
    """`scores_per_date` in batches of dates."""
    per_date = max(1, len(forecast.number)) * goal[0].size
    size = max(1, VALUES // per_date)
    parts: list[dict[str, NDArray[np.float64]]] = []
    for start in range(0, len(first), size):
        rows = slice(start, start + size)
        x = forecast.values(first[rows])[:, step]
        if np.isnan(x).any() and np.isnan(x).all():
            raise InputError(f"{forecast.path}: holds nothing but NaN.")
        part = reference.part(rows)
        hidden = np.where(np.isfinite(x).all(1), goal[rows, step], np.nan)
        parts.append(scores_per_date(x, hidden, weights, forecast.grid.periodic, part))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
