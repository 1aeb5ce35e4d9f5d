"""Test-beds whose truth is known: a hierarchical Gaussian field in closed form, the others by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from domains.weather.quasigeostrophic import quasigeostrophic_ensemble

Array = NDArray[np.float64]
SYSTEMS = ("lorenz96", "lorenz96-two-level", "gaussian", "quasigeostrophic")


# --- hierarchical Gaussian field --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GaussianField:
    """`v_k = m + e_k` on a latitude-longitude box: m shared by the members of a date, e_k independent.

    Attributes:
        shape: rows, columns.
        signal, spread: standard deviations of m and of e_k.
        signal_length, spread_length: correlation lengths in grid points, of `exp(-distance / length)`.
        mean: climatological mean, everywhere.
    """

    shape: tuple[int, int] = (6, 8)
    signal: float = 1.0
    spread: float = 1.0
    signal_length: float = 4.0
    spread_length: float = 2.0
    mean: float = 10.0

    def covariances(self) -> tuple[Array, Array]:
        """B and W, `(n, n)`."""
        rows, columns = np.divmod(np.arange(self.shape[0] * self.shape[1]), self.shape[1])
        distance = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
        return (
            self.signal**2 * np.exp(-distance / self.signal_length),
            self.spread**2 * np.exp(-distance / self.spread_length),
        )

    def draw(self, dates: int, members: int, seed: int) -> Array:
        """`(D, M, H, W)`."""
        rng = np.random.default_rng(seed)
        B, W = (np.linalg.cholesky(c + 1e-9 * np.eye(len(c))) for c in self.covariances())
        m = rng.standard_normal((dates, 1, len(B))) @ B.T
        e = rng.standard_normal((dates, members, len(W))) @ W.T
        out: Array = self.mean + (m + e).reshape(dates, members, *self.shape)
        return out

    def predictive(self, seeds: Array) -> tuple[Array, Array]:
        """Exact mean `(D, n)` and covariance `(n, n)` of a further member given seeds `(D, K, H, W)`; K = 0 is allowed."""
        B, W = self.covariances()
        dates, count = seeds.shape[:2]
        if count == 0:
            return np.full((dates, len(B)), self.mean), B + W
        gain = np.linalg.solve(B + W / count, B).T
        centre = (seeds - self.mean).mean(1).reshape(dates, -1)
        return self.mean + centre @ gain.T, B + W - gain @ B

    def optimal_crps(self, seeds: int) -> float:
        """CRPS that no forecast from so many seeds beats: sigma / sqrt(pi), averaged over the points."""
        _, covariance = self.predictive(np.zeros((1, seeds, *self.shape)))
        return float(np.sqrt(np.diag(covariance)).mean() / math.sqrt(math.pi))


# --- Lorenz-96 --------------------------------------------------------------------------------------------------------


def lorenz96(x: Array, forcing: float = 8.0) -> Array:
    """Tendency of the one-level model (Lorenz 1996, eq. 1) on a ring, last axis."""
    out: Array = (np.roll(x, -1, -1) - np.roll(x, 2, -1)) * np.roll(x, 1, -1) - x + forcing
    return out


@dataclass(frozen=True)
class TwoLevel:
    """Lorenz-96 with a fast level (Lorenz 1996, eq. 2-3): K slow variables with J fast ones each.

    The state is `(..., K (1 + J))`: the slow variables, then the fast ones.
    """

    slow: int = 36
    fast: int = 10
    forcing: float = 10.0
    h: float = 1.0
    b: float = 10.0
    c: float = 10.0

    def __call__(self, state: Array) -> Array:
        x, y = state[..., : self.slow], state[..., self.slow :]
        sums = y.reshape(*y.shape[:-1], self.slow, self.fast).sum(-1)
        coupling = self.h * self.c / self.b
        dx = lorenz96(x, self.forcing) - coupling * sums
        dy = (
            -self.c * self.b * np.roll(y, -1, -1) * (np.roll(y, -2, -1) - np.roll(y, 1, -1))
            - self.c * y
            + coupling * np.repeat(x, self.fast, -1)
        )
        return np.concatenate([dx, dy], -1)


def runge_kutta(tendency: Callable[[Array], Array], x: Array, dt: float, steps: int) -> Array:
    """Classical fourth-order steps."""
    for _ in range(steps):
        a = tendency(x)
        b = tendency(x + dt / 2 * a)
        c = tendency(x + dt / 2 * b)
        d = tendency(x + dt * c)
        x = x + dt / 6 * (a + 2 * b + 2 * c + d)
    return x


def lorenz96_ensemble(
    dates: int,
    members: int,
    seed: int,
    lead: float = 2.0,
    points: int = 40,
    analysis: float = 0.25,
    spread: float = 0.25,
) -> tuple[Array, Array]:
    """Forecasts `(D, M, N)` and truth `(D, N)` at `lead` time units: an analysis with errors, perturbed for every member.

    Args:
        analysis, spread: standard deviations of the analysis error and of the members' perturbations.
    """
    rng = np.random.default_rng(seed)
    truth = runge_kutta(lorenz96, 8 + rng.standard_normal((dates, points)), 0.05, 600)
    centre = truth + analysis * rng.standard_normal(truth.shape)
    start = centre[:, None] + spread * rng.standard_normal((dates, members, points))
    steps = round(lead / 0.05)
    return runge_kutta(lorenz96, start, 0.05, steps), runge_kutta(lorenz96, truth, 0.05, steps)


def two_level_ensemble(
    dates: int, members: int, seed: int, lead: float = 1.0, analysis: float = 0.2, spread: float = 0.2
) -> tuple[Array, Array]:
    """Forecasts by the one-level model, truth by the two-level one: bias and lack of spread are real."""
    rng, model = np.random.default_rng(seed), TwoLevel()
    start = np.concatenate(
        [5 + 3 * rng.standard_normal((dates, model.slow)), 0.1 * rng.standard_normal((dates, model.slow * model.fast))],
        -1,
    )
    state = runge_kutta(model, start, 0.002, 3000)
    slow = state[:, : model.slow]
    truth = runge_kutta(model, state, 0.002, round(lead / 0.002))[:, : model.slow]
    members_ = slow[:, None] + analysis * rng.standard_normal((dates, 1, model.slow))
    members_ = members_ + spread * rng.standard_normal((dates, members, model.slow))
    return runge_kutta(lambda x: lorenz96(x, 8.0), members_, 0.02, round(lead / 0.02)), truth


# --- as files ---------------------------------------------------------------------------------------------------------


def simulate(system: str, dates: int, members: int, seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Ensemble and truth of a test-bed as data sets with CF coordinates."""
    days = np.datetime64("2000-01-01", "ns") + np.arange(dates) * np.timedelta64(1, "D")
    if system == "quasigeostrophic":
        return _quasigeostrophic(days, members, seed)
    if system == "gaussian":
        field = GaussianField()
        values = field.draw(dates, members + 1, seed)
        rows, columns = field.shape
        coordinates = {"latitude": 60 - 2.5 * np.arange(rows), "longitude": 2.5 * np.arange(columns)}
        ensemble, truth, lead = values[:, :-1], values[:, -1], np.timedelta64(48, "h")
    else:
        make = lorenz96_ensemble if system == "lorenz96" else two_level_ensemble
        forecast, future = make(dates, members, seed)
        points = forecast.shape[-1]
        coordinates = {"latitude": np.zeros(1), "longitude": np.arange(points) * 360 / points}
        ensemble, truth = forecast[:, :, None], future[:, None]
        lead = np.timedelta64(240 if system == "lorenz96" else 120, "h")  # Lorenz: a time unit is about five days
    shared = {"time": days, "step": lead.astype("timedelta64[ns]"), **coordinates}
    attributes = {"units": "1", "long_name": f"{system} state"}
    space = ("latitude", "longitude")
    history = {"source": f"diffsuite weather simulate {system} --seed {seed}", "Conventions": "CF-1.8"}
    first = xr.Dataset(
        {"x": (("number", "time", *space), ensemble.swapaxes(0, 1).astype(np.float32), attributes)},
        {"number": np.arange(members), **shared},
        history,
    )
    return first, xr.Dataset({"x": (("time", *space), truth.astype(np.float32), attributes)}, shared, history)


def _quasigeostrophic(days: NDArray[np.datetime64], members: int, seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Streamfunctions of both layers; the plane lies along the equator, where all cells are of one size."""
    ensemble, truth = quasigeostrophic_ensemble(len(days), members, seed)
    side = truth.shape[-1]
    shared = {
        "time": days,
        "step": np.timedelta64(72, "h").astype("timedelta64[ns]"),
        "level": [1, 2],
        "latitude": 0.1 * (side / 2 - 0.5 - np.arange(side)),
        "longitude": np.arange(side) * 360 / side,
    }
    attributes = {"units": "1", "long_name": "streamfunction of a two-layer quasi-geostrophic flow"}
    history = {"source": f"diffsuite weather simulate quasigeostrophic --seed {seed}", "Conventions": "CF-1.8"}
    space = ("level", "latitude", "longitude")
    first = xr.Dataset(
        {"psi": (("number", "time", *space), ensemble.swapaxes(0, 1), attributes)},
        {"number": np.arange(members), **shared},
        history,
    )
    return first, xr.Dataset({"psi": (("time", *space), truth, attributes)}, shared, history)
