"""Two Lorenz-96 members to twenty by every method, against a further member of dates no fit has seen.

    python benchmarks/weather_lorenz96.py [--model MODEL] [--dates 250] [--members 20] [--seed 4242]

Prints the table of docs/weather.md: scores, and how many real members a system is worth, `1 / (crps_fair / true - 1)` with
the fair CRPS of `--raw` true members for the true one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from domains.weather.data import read_ensemble
from domains.weather.evaluation import evaluate
from domains.weather.model import load_model
from domains.weather.output import open_writer
from domains.weather.physics import simulate
from domains.weather.pipeline import GenerateConfig, Generator

METHODS = ("climatology", "dressing", "emos", "gaussian", "schaake", "diffusion")
SCORES = ("crps", "crps_fair", "energy_fair", "variogram", "spread_skill", "rank_tails")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lorenz96")
    parser.add_argument("--dates", type=int, default=250)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--raw", type=int, default=20, help="true members that give the true score")
    parser.add_argument("--seed", type=int, default=4242)
    given = parser.parse_args()
    model = load_model(given.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = simulate("lorenz96", given.dates, given.raw + 1, given.seed)
        data.isel(number=slice(0, 2)).to_netcdf(folder / "seeds.nc", engine="h5netcdf")
        data.isel(number=slice(0, given.raw)).to_netcdf(folder / "raw.nc", engine="h5netcdf")
        data.isel(number=given.raw, drop=True).to_netcdf(folder / "truth.nc", engine="h5netcdf")
        seeds, truth = read_ensemble(folder / "seeds.nc"), read_ensemble(folder / "truth.nc")
        true = evaluate(read_ensemble(folder / "raw.nc"), truth, None)["metrics"]
        print(f"{'method':12}", *(f"{s:>12}" for s in SCORES), f"{'worth':>8}")
        print(f"{f'true ({given.raw})':12}", *(f"{true[s]:12.4f}" for s in SCORES))
        for method in METHODS:
            maker = Generator(model, seeds, GenerateConfig(method=method))  # type: ignore[arg-type]
            writer = open_writer(folder / f"{method}.nc", seeds, range(given.members), given.members, {})
            for rows in np.array_split(np.arange(given.dates), max(1, given.dates // 12)):
                values = maker.members([maker.day(int(d)) for d in rows], list(range(given.members)))
                for d, value in zip(rows, values, strict=True):
                    writer.write(int(d), 0, seeds.grid.to_file(value))
            writer.close()
            scores = evaluate(read_ensemble(folder / f"{method}.nc"), truth, None)["metrics"]
            worth = 1 / max(scores["crps_fair"] / true["crps_fair"] - 1, 1e-9)
            print(f"{method:12}", *(f"{scores[s]:12.4f}" for s in SCORES), f"{worth:8.1f}", flush=True)


if __name__ == "__main__":
    main()
