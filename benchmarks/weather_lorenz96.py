"""Two Lorenz-96 members to twenty by every method, against a further member of dates no fit has seen.

    python benchmarks/weather_lorenz96.py [--model MODEL] [--dates 250] [--members 20] [--seed 4242] [--methods a,b]
                                          [--images FOLDER]

Prints the table of docs/weather.md: scores, and how many real members a system is worth, `1 / (crps_fair / true - 1)` with
the fair CRPS of `--raw` true members for the true one; `--images` draws the page's figures.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from domains.weather.containers import Ensemble
from domains.weather.data import read_ensemble
from domains.weather.evaluation import evaluate
from domains.weather.model import WeatherModel, load_model
from domains.weather.output import open_writer
from domains.weather.pages import diagrams
from domains.weather.physics import simulate
from domains.weather.pipeline import GenerateConfig, Generator
from suite.chart import Chart, Series, to_svg

SETTINGS = {
    "climatology": GenerateConfig(method="climatology"),
    "dressing": GenerateConfig(method="dressing"),
    "best-member": GenerateConfig(method="dressing", dressing="best-member"),
    "emos": GenerateConfig(method="emos"),
    "ecc": GenerateConfig(method="ecc"),
    "schaake": GenerateConfig(method="schaake"),
    "gaussian": GenerateConfig(method="gaussian"),
    "refine": GenerateConfig(solver="refine"),
    "diffusion": GenerateConfig(),
}
SCORES = ("crps", "crps_fair", "energy_fair", "variogram", "spread_skill", "rank_tails")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lorenz96")
    parser.add_argument("--dates", type=int, default=250)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--raw", type=int, default=20, help="true members that give the true score")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--methods", default=",".join(SETTINGS))
    parser.add_argument("--images", type=Path, help="folder for the figures of the documentation")
    given = parser.parse_args()
    model = load_model(given.model)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = simulate("lorenz96", given.dates, given.raw + 1, given.seed)
        data.isel(number=slice(0, 2)).to_netcdf(folder / "seeds.nc", engine="h5netcdf")
        data.isel(number=slice(0, given.raw)).to_netcdf(folder / "raw.nc", engine="h5netcdf")
        data.isel(number=given.raw, drop=True).to_netcdf(folder / "truth.nc", engine="h5netcdf")
        seeds, truth = read_ensemble(folder / "seeds.nc"), read_ensemble(folder / "truth.nc")
        true = evaluate(read_ensemble(folder / "raw.nc"), truth, None)["metrics"]
        print(f"{'method':12}", *(f"{s:>12}" for s in SCORES), f"{'worth':>8}")
        print(f"{f'true ({given.raw})':12}", *(f"{true[s]:12.4f}" for s in SCORES), flush=True)
        for method in given.methods.split(","):
            out = folder / f"{method}.nc"
            generate(model, seeds, SETTINGS[method], given.members, out)
            results[method] = evaluate(read_ensemble(out), truth, None)
            scores = results[method]["metrics"]
            print(f"{method:12}", *(f"{scores[s]:12.4f}" for s in SCORES), f"{worth(scores, true):8.1f}", flush=True)
    if given.images is not None:
        draw(results, true, given.images)


def generate(model: WeatherModel, seeds: Ensemble, config: GenerateConfig, members: int, out: Path) -> None:
    maker = Generator(model, seeds, config)
    writer = open_writer(out, seeds, range(members), members, {})
    dates = len(seeds.time)
    for rows in np.array_split(np.arange(dates), max(1, dates // 12)):
        values = maker.members([maker.day(int(d)) for d in rows], list(range(members)))
        for d, value in zip(rows, values, strict=True):
            writer.write(int(d), 0, seeds.grid.to_file(value))
    writer.close()


def worth(scores: dict[str, float], true: dict[str, float]) -> float:
    return 1 / max(scores["crps_fair"] / true["crps_fair"] - 1, 1e-9)


def draw(results: dict[str, dict[str, Any]], true: dict[str, float], folder: Path) -> None:
    """`weather_worth.svg`, `weather_ranks.svg`, `weather_spread.svg` and `weather_spectrum.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    size = np.linspace(1.5, 12, 60)
    points = {name: (worth(r["metrics"], true), r["metrics"]["crps_fair"]) for name, r in results.items()}
    at = sorted(points.values())
    series = [
        Series("M true members", size, true["crps_fair"] * (1 + 1 / size)),
        Series("20 made from two", [a for a, _ in at], [b for _, b in at], "points"),
    ]
    marks = tuple((*points[n], n) for n in ("climatology", "dressing", "emos", "diffusion") if n in points)
    chart = Chart("How many members do I really have?", "true members", "CRPS", series, marks=marks)
    (folder / "weather_worth.svg").write_text(to_svg(chart))
    ranks, spread = diagrams(results["diffusion"])[:2]
    (folder / "weather_ranks.svg").write_text(to_svg(ranks))
    (folder / "weather_spread.svg").write_text(to_svg(spread))
    curves = {n: results[n]["curves"][0]["spectrum"] for n in ("emos", "schaake", "diffusion") if n in results}
    some = next(iter(curves.values()))
    lines = [Series(n, c["wavenumber"], c["forecast"]) for n, c in curves.items()]
    lines.append(Series("truth", some["wavenumber"], some["truth"]))
    chart = Chart("Spectrum of the members", "wavenumber", "power", lines, log="xy")
    (folder / "weather_spectrum.svg").write_text(to_svg(chart))


if __name__ == "__main__":
    main()
