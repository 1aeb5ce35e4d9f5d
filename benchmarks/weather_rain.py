"""Rain whose seeds tell nothing: the CFSv2 seasonal hindcast, two members to twenty, against its other members.

    python benchmarks/weather_rain.py [--data cfsv2_pr_iberia_djf_1983_1997.nc] [--iterations 300] [--members 20] [-o FOLDER]
                                      [--folds all]

Leaves three winters out of the fit, generates for them from members 0 and 1, and verifies against each of the other seven
members: the last three winters, or with `--folds all` each three of the fifteen in turn and all of them together. Printed for
every method: CRPS as issued and fair, as means over the seven, both over climatology's; energy and variogram; how often more
than 1 mm a day fell (0.25 mm in 6 hours), the 99 % quantile and the smallest value; and the gap between the wet days of
diffusion and of the seven with its 90 % interval, from winters of single members drawn with replacement on both sides of the
split. Before that, from all winters but the last three: whether the wetness of the seeds or a trend would tell that of a winter
not seen. The best possible is level with climatology: the runs start two months earlier and hold next to no memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from cli import main as diffsuite
from domains.weather.data import read_ensemble
from domains.weather.evaluation import evaluate

DATA = Path(os.environ.get("DIFFSUITE_DATA", "../shared/data")) / "weather" / "cfsv2_pr_iberia_djf_1983_1997.nc"
METHODS = ("climatology", "gaussian", "diffusion", "emos", "schaake")
LEFT_OUT = 3  # winters of a fold
EVERY = 2  # dates of the test
WET = 0.25  # mm in 6 hours: 1 mm a day
SCORES = ("crps", "crps_fair", "energy_fair", "variogram")
FIT = ("--set", "batch=48", "--set", "cooldown=0.8", "--set", "validate_every=100")


@dataclass(frozen=True)
class Fold:
    """One split by winters: values `(number, time, latitude, longitude)` of its sides, and the winter of each date."""

    years: list[int]
    train: np.ndarray
    train_winter: np.ndarray
    test: np.ndarray
    test_winter: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--folds", choices=["last", "all"], default="last")
    parser.add_argument("-o", "--output", type=Path, help="keep the models and the members here")
    given = parser.parse_args()
    if not given.data.exists():
        print(f"weather_rain: skipped, there is no file {given.data}")
        return
    data = xr.open_dataset(given.data, engine="h5netcdf").load()
    remedies(data)
    folds = np.arange(int(winters(data).max()) - int(winters(data).min()) + 1).reshape(-1, LEFT_OUT)
    rows: dict[str, list[dict[str, float]]] = {}
    draws: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as name:
        for fold in folds if given.folds == "all" else folds[-1:]:
            years = [int(winters(data).min()) + int(i) for i in fold]
            folder = (given.output or Path(name)) / str(years[0])
            folder.mkdir(parents=True, exist_ok=True)
            split_ = split(data, years, folder)
            found = measured(split_, folder, given.methods.split(","), given.members, given.iterations)
            for method, row in found.items():
                rows.setdefault(method, []).append(row)
            if "diffusion" in found:
                draws.append(gaps(split_, found["diffusion"]["wet"]))
                told(draws[-1], f"winters {years[0]} to {years[-1]}")
    if len(draws) > 1:
        print("all folds together")
        for method, parts in rows.items():
            told_row(method, mean(parts), mean(rows["climatology"]))
        told(np.mean(draws, 0), "all winters")


def remedies(data: xr.Dataset) -> None:
    """What could shift the wet days of an unseen winter: something its members share, or a trend; told from the past."""
    past = data.sel(time=winters(data) <= winters(data).max() - LEFT_OUT)
    winter = winters(past)
    share = np.stack([by_winter(past["pr"].values[:, winter == w], winter[winter == w]) for w in np.unique(winter)])
    share, years = 100 * share, np.unique(winter).astype(float)  # (winter, member), in per cent
    chance = share.var(1, ddof=1).mean() / share.shape[1]
    print(f"variance of a winter's mean over its members {share.mean(1).var(ddof=1):.2f}, by chance {chance:.2f}")
    slope, error = trend(years, share.mean(1))
    errors: dict[str, list[float]] = {"mean": [], "shrunk trend": [], "trend": []}
    for i in range(4, len(years)):
        before, known = years[:i], share[:i].mean(1)
        b, e = trend(before, known)
        ahead = years[i] - before.mean()
        for name, factor in {"mean": 0.0, "shrunk trend": max(0.0, 1 - (e / b) ** 2), "trend": 1.0}.items():
            errors[name].append(known.mean() + factor * b * ahead - share[i].mean())
    rms = ", ".join(f"{name} {np.sqrt(np.mean(np.square(e))):.2f}" for name, e in errors.items())
    print(f"trend {slope:.2f} points a year, standard error {error:.2f}; error on the next winter, RMS: {rms}")


def trend(years: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Least-squares slope and its standard error."""
    x = years - years.mean()
    slope = float((x * values).sum() / (x**2).sum())
    left = values - values.mean() - slope * x
    return slope, float(np.sqrt((left**2).sum() / (len(x) - 2) / (x**2).sum()))


def winters(data: xr.Dataset) -> np.ndarray:
    """The year of January of each date's winter."""
    month = data["time"].values.astype("datetime64[M]").astype(int)
    return 1970 + month // 12 + (month % 12 == 11)


def split(data: xr.Dataset, years: list[int], folder: Path) -> Fold:
    """Write the files of the fit and of the test."""
    winter = winters(data)
    out = np.isin(winter, years)
    train, test = data.isel(time=np.flatnonzero(~out)), data.isel(time=np.flatnonzero(out)[::EVERY])
    train.to_netcdf(folder / "train.nc", engine="h5netcdf")
    test.isel(number=[0, 1]).to_netcdf(folder / "seeds.nc", engine="h5netcdf")
    for n in range(2, test.sizes["number"]):
        test.isel(number=n, drop=True).to_netcdf(folder / f"truth{n}.nc", engine="h5netcdf")
    return Fold(years, train["pr"].values, winter[~out], test["pr"].values, winter[out][::EVERY])


def measured(
    fold: Fold, folder: Path, methods: list[str], members: int, iterations: int
) -> dict[str, dict[str, float]]:
    """Fit, generate and verify one fold; scores by method."""
    model = folder / "rain.safetensors"
    if not model.exists():
        run("fit", folder / "train.nc", "-o", model, "--quiet", "--iterations", iterations, *FIT)
    train, others, nine = wet(fold.train), wet(fold.test[2:]), wet(fold.test)
    print(f"winters {fold.years}: wet days of the fit {train:.4f}, verification {others:.4f}, all nine members {nine:.4f}; "
          f"99 % quantile: verification {np.quantile(fold.test[2:], 0.99):.3f}")  # fmt: skip
    out: dict[str, dict[str, float]] = {}
    for method in methods:
        path = folder / f"{method}.nc"
        run("generate", folder / "seeds.nc", "--model", model, "--members", members, "--method", method,
            "-o", path, "--overwrite", "--quiet", "--no-report")  # fmt: skip
        out[method] = mean([scores(path, folder / f"truth{n}.nc") for n in range(2, len(fold.test))])
        values = xr.open_dataset(path, engine="h5netcdf")["pr"].values
        out[method] |= {"wet": wet(values), "q99": float(np.quantile(values, 0.99)), "min": float(values.min())}
        told_row(method, out[method], out.get("climatology", out[method]))
    return out


def told_row(method: str, row: dict[str, float], first: dict[str, float]) -> None:
    told = "  ".join(f"{s} {row[s]:.4f} ({row[s] / first[s]:.4f})" for s in SCORES)
    print(f"{method:12} {told}  wet {row['wet']:.4f}  q99 {row['q99']:.3f}  min {row['min']:g}", flush=True)


def told(draws: np.ndarray, what: str) -> None:
    low, high = 100 * np.quantile(draws[1:], [0.05, 0.95])
    print(
        f"{what}: wet days of diffusion less those of the seven: {100 * draws[0]:.2f} points (90 %: {low:.2f} to {high:.2f})"
    )


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def gaps(fold: Fold, generated: float, draws: int = 4000) -> np.ndarray:
    """The gap of the wet days, then draws of it `(1 + draws,)`: what another sample of member-winters on both sides would give."""
    rng = np.random.default_rng(0)
    fit, other = by_winter(fold.train, fold.train_winter), by_winter(fold.test[2:], fold.test_winter)
    gap = generated - wet(fold.test[2:])
    error = [rng.choice(x, (draws, x.size)).mean(1) - x.mean() for x in (fit, other)]
    return np.concatenate([[gap], gap + error[0] - error[1]])


def by_winter(values: np.ndarray, winter: np.ndarray) -> np.ndarray:
    """Wet share of each winter of each member, flat."""
    return np.concatenate([(values[:, winter == w] >= WET).mean((1, 2, 3)) for w in np.unique(winter)])


def run(*words: object) -> None:
    if diffsuite(["weather", *map(str, words)]):
        raise SystemExit(1)


def scores(forecast: Path, truth: Path) -> dict[str, float]:
    ensemble = read_ensemble(forecast)
    metrics: dict[str, float] = evaluate(ensemble, read_ensemble(truth), None)["metrics"]
    return {name: metrics[name] for name in SCORES}


def wet(values: np.ndarray) -> float:
    return float((values >= WET).mean())


if __name__ == "__main__":
    main()
