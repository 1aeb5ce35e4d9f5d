"""Two members of a two-layer quasi-geostrophic flow to ten by every method, against further members of dates no fit has seen.

    diffsuite weather simulate quasigeostrophic --dates 240 --members 4 --seed 1 -o train.nc
    diffsuite weather fit train.nc --config configs/weather/quasigeostrophic.yaml --minutes 28 -o MODEL
    diffsuite weather simulate quasigeostrophic --dates 40 --members 10 --seed 2 -o test.nc
    python benchmarks/weather_quasigeostrophic.py MODEL test.nc [--dates 40] [--members 10] [--methods a,b]

Prints the table of docs/weather.md: means over the targets, members 2 to 4 of the test in turn; `true` are its last five.
The model takes minutes to fit and does not ship: without it the script says so and ends.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr
from weather_lorenz96 import SETTINGS, generate, worth

from domains.weather.data import read_ensemble
from domains.weather.evaluation import evaluate
from domains.weather.model import load_model

SCORES = ("crps", "crps_fair", "energy_fair", "variogram", "spread_skill", "rank_tails", "spectrum_log_error")
METHODS = ("climatology", "dressing", "best-member", "emos", "ecc", "schaake", "gaussian", "diffusion")
TARGETS = (2, 3, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("test", nargs="?", type=Path)
    parser.add_argument("--dates", type=int, default=40)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--methods", default=",".join(METHODS))
    given = parser.parse_args()
    if given.test is None or not given.test.exists():
        print(
            "weather_quasigeostrophic: skipped, there is no model and no test file; the commands that make them are above"
        )
        return
    model = load_model(given.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = xr.open_dataset(given.test, engine="h5netcdf").isel(time=slice(0, given.dates))
        data.isel(number=[0, 1]).to_netcdf(folder / "seeds.nc", engine="h5netcdf")
        data.isel(number=slice(max(TARGETS) + 1, None)).to_netcdf(folder / "true.nc", engine="h5netcdf")
        for n in TARGETS:
            data.isel(number=n, drop=True).to_netcdf(folder / f"target{n}.nc", engine="h5netcdf")
        print(f"{'method':12}", *(f"{s:>18}" for s in SCORES), f"{'worth':>8}")
        true = scores(folder / "true.nc", folder)
        show("true", true, true)
        for method in given.methods.split(","):
            generate(
                model, read_ensemble(folder / "seeds.nc"), SETTINGS[method], given.members, folder / f"{method}.nc"
            )
            show(method, scores(folder / f"{method}.nc", folder), true)


def scores(forecast: Path, folder: Path) -> dict[str, float]:
    """Means over the targets."""
    ensemble = read_ensemble(forecast)
    rows = [evaluate(ensemble, read_ensemble(folder / f"target{n}.nc"), None)["metrics"] for n in TARGETS]
    return {name: float(np.mean([row[name] for row in rows])) for name in SCORES}


def show(name: str, row: dict[str, float], true: dict[str, float]) -> None:
    print(f"{name:12}", *(f"{row[s]:18.4f}" for s in SCORES), f"{worth(row, true):8.1f}", flush=True)


if __name__ == "__main__":
    main()
