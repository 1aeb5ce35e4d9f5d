"""Sea level pressure three days ahead: two members of a linear inverse model to twenty, against the reanalysis.

    python benchmarks/_slp_archive.py ncep_slp_natl_2001_2008.nc -o FOLDER
    python benchmarks/weather_slp.py FOLDER [--model slp-north-atlantic] [--every 8] [--methods a,b]

Prints the table of docs/weather.md for 2007 and 2008, which no fit has seen; without the folder it says so and ends.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import xarray as xr
from weather_lorenz96 import SETTINGS, generate

from domains.weather.data import read_ensemble
from domains.weather.evaluation import evaluate
from domains.weather.model import load_model

SCORES = ("crps", "crps_fair", "energy_fair", "variogram", "rmse", "spread_skill", "rank_tails")
METHODS = ("climatology", "dressing", "best-member", "emos", "schaake", "gaussian", "diffusion")
MEMBERS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", default="slp-north-atlantic")
    parser.add_argument("--every", type=int, default=8, help="dates of the test")
    parser.add_argument("--methods", default=",".join(METHODS))
    given = parser.parse_args()
    if given.folder is None or not (given.folder / "slp_test.nc").exists():
        print("weather_slp: skipped, there is no folder of benchmarks/_slp_archive.py")
        return
    model = load_model(given.model)
    past = read_ensemble(given.folder / "slp_truth.nc")
    with tempfile.TemporaryDirectory() as name:
        folder, some = Path(name), {"time": slice(None, None, given.every)}
        ensemble, truth = (
            xr.open_dataset(given.folder / f, engine="h5netcdf").isel(some)
            for f in ("slp_test.nc", "slp_test_truth.nc")
        )
        ensemble.isel(number=[0, 1]).to_netcdf(folder / "seeds.nc", engine="h5netcdf")
        truth.to_netcdf(folder / "truth.nc", engine="h5netcdf")
        print(f"{'method':12}", *(f"{s:>14}" for s in SCORES))
        for method in given.methods.split(","):
            out = folder / f"{method}.nc"
            generate(model, read_ensemble(folder / "seeds.nc"), SETTINGS[method], MEMBERS, out)
            result = evaluate(read_ensemble(out), read_ensemble(folder / "truth.nc"), past)
            low, high = result["intervals"]["spread_skill"]
            told = " ".join(f"{result['metrics'][s]:14.4f}" for s in SCORES)
            print(f"{method:12} {told}   spread/skill 90 %: {low:.3f} to {high:.3f}", flush=True)


if __name__ == "__main__":
    main()
