"""Rain whose seeds tell nothing: the CFSv2 seasonal hindcast, two members to twenty, against its other members.

    python benchmarks/weather_rain.py [--data cfsv2_pr_iberia_djf_1983_1997.nc] [--iterations 300] [--members 20] [-o FOLDER]

Fits on the winters to 1993/94, generates for the three winters after them from members 0 and 1, and verifies against each of
the other seven members. Printed for every method: CRPS as issued and fair, as means over the seven, both over climatology's;
energy and variogram; how often more than 1 mm a day fell (0.25 mm in 6 hours), the 99 % quantile and the smallest value. The
best possible is level with climatology: the runs start two months earlier and hold next to no memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from cli import main as diffsuite
from domains.weather.data import read_ensemble
from domains.weather.evaluation import evaluate

DATA = Path(os.environ.get("DIFFSUITE_DATA", "../shared/data")) / "weather" / "cfsv2_pr_iberia_djf_1983_1997.nc"
METHODS = ("climatology", "gaussian", "diffusion", "emos", "schaake")
LAST = "1994-11-30"  # of the fit
EVERY = 2  # dates of the test
WET = 0.25  # mm in 6 hours: 1 mm a day
SCORES = ("crps", "crps_fair", "energy_fair", "variogram")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("-o", "--output", type=Path, help="keep the model and the members here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.output or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        train, test = split(given.data, folder)
        model = folder / "rain.safetensors"
        words = [
            "--iterations",
            given.iterations,
            "--set",
            "batch=48",
            "--set",
            "cooldown=0.8",
            "--set",
            "validate_every=100",
        ]
        if not model.exists():
            run("fit", folder / "train.nc", "-o", model, *words)
        print(
            f"wet days: training {wet(train):.4f}, verification {wet(test[2:]):.4f}, all nine members {wet(test):.4f}"
        )
        print(
            f"99 % quantile: verification {np.quantile(test[2:], 0.99):.3f}, all nine members {np.quantile(test, 0.99):.3f}"
        )
        first: dict[str, float] = {}
        for method in given.methods.split(","):
            out = folder / f"{method}.nc"
            run("generate", folder / "seeds.nc", "--model", model, "--members", given.members, "--method", method,
                "-o", out, "--overwrite", "--quiet", "--no-report")  # fmt: skip
            rows = [scores(out, folder / f"truth{n}.nc") for n in range(2, len(test))]
            mean = {s: float(np.mean([r[s] for r in rows])) for s in SCORES}
            first = first or mean
            values = xr.open_dataset(out, engine="h5netcdf")["pr"].values
            told = "  ".join(f"{s} {mean[s]:.4f} ({mean[s] / first[s]:.4f})" for s in SCORES)
            print(
                f"{method:12} {told}  wet {wet(values):.4f}  q99 {np.quantile(values, 0.99):.3f}  min {values.min():g}",
                flush=True,
            )


def split(path: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the files of the fit and of the test; the values `(number, time, latitude, longitude)` of both."""
    data = xr.open_dataset(path, engine="h5netcdf").load()
    train, test = data.sel(time=slice(None, LAST)), data.sel(time=slice(LAST, None)).isel(time=slice(None, None, EVERY))
    train.to_netcdf(folder / "train.nc", engine="h5netcdf")
    test.isel(number=[0, 1]).to_netcdf(folder / "seeds.nc", engine="h5netcdf")
    for n in range(2, test.sizes["number"]):
        test.isel(number=n, drop=True).to_netcdf(folder / f"truth{n}.nc", engine="h5netcdf")
    return train["pr"].values, test["pr"].values


def run(*words: object) -> None:
    if diffsuite(["weather", *map(str, words)]):
        raise SystemExit(1)


def scores(forecast: Path, truth: Path) -> dict[str, float]:
    ensemble = read_ensemble(forecast)
    metrics: dict[str, float] = evaluate(ensemble, read_ensemble(truth), None)["metrics"]
    return metrics


def wet(values: np.ndarray) -> float:
    return float((values >= WET).mean())


if __name__ == "__main__":
    main()
