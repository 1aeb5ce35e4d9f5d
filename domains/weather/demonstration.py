"""The demo: two members of a simulated Lorenz-96 ensemble to fifty, verified beside EMOS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from domains.weather.data import read_ensemble
from domains.weather.evaluation import evaluate
from domains.weather.model import load_model
from domains.weather.output import open_writer
from domains.weather.physics import simulate
from domains.weather.pipeline import GenerateConfig, Generator
from suite.options import command_line
from suite.progress import progress
from suite.report import Figure, Report, Stack, write_report
from suite.run import Run

DATES, MEMBERS, SHOWN = 40, 50, 8
METHODS = ("diffusion", "emos", "gaussian")


def run_demo(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """Simulate, generate by three methods, verify; returns the path of the report."""
    settings = {"dates": DATES, "members": MEMBERS}
    with Run(
        output,
        domain="weather",
        config=settings,
        inputs=[],
        command=command_line(),
        method="diffusion",
        overwrite=overwrite,
    ) as run:
        ensemble, truth = simulate("lorenz96", DATES, 2, seed=2026)
        for name, data in (("seeds.nc", ensemble), ("truth.nc", truth)):
            data.to_netcdf(run.output(name), engine="h5netcdf")
        model = load_model("lorenz96")
        run.prior = {"name": model.card.name, "sha256": model.sha256}
        run.warn("The input is simulated (Lorenz-96): no real ensemble forecast ships with a dependency.")
        seeds, right = read_ensemble(run.output("seeds.nc")), read_ensemble(run.output("truth.nc"))
        rows, pictures = [], {}
        with progress("Generating", len(METHODS), quiet=quiet) as update:
            for done, method in enumerate(METHODS, 1):
                maker = Generator(model, seeds, GenerateConfig(method=method), clock=run.clock)  # type: ignore[arg-type]
                values = maker.members([maker.day(d) for d in range(DATES)], list(range(MEMBERS)))
                writer = open_writer(run.output(f"{method}.nc"), seeds, range(MEMBERS), MEMBERS, {})
                for date in range(DATES):
                    writer.write(date, 0, seeds.grid.to_file(values[date]))
                writer.close()
                scores = evaluate(read_ensemble(run.output(f"{method}.nc")), right, None)["metrics"]
                names = ("crps", "energy", "variogram", "spread_skill", "rank_tails")
                rows.append({"method": method} | {name: scores[name] for name in names})
                pictures[method] = values[:SHOWN, 0, :, 0, 0]
                run.nfe = max(run.nfe, maker.evaluations)
                update(done)
        run.metrics = {str(row["method"]): {k: v for k, v in row.items() if k != "method"} for row in rows}
        run.estimator = "sample"
        write_report(_report(rows, pictures, seeds.values()[:SHOWN, 0, :, 0, 0], run), run.output("report.html"))
    return output / "report.html"


def _report(rows: list[dict[str, Any]], pictures: dict[str, Any], seeds: Any, run: Run) -> Report:
    def tall(members: Any) -> np.ndarray:  # a row per member, six pixels high
        return np.repeat(members, 6, axis=1)

    stacks = [Stack("two seeds", tall(np.repeat(seeds, MEMBERS // 2, axis=1)))]
    stacks += [Stack(f"{name}, 50 members", tall(members)) for name, members in pictures.items()]
    figure = Figure("Members (rows) around the ring (columns), one date per slice", stacks, {"x": (3.0, 20.0)})
    return Report(
        "Weather: from two members to fifty (Lorenz-96, simulated)", "pass",
        facts={"dates": DATES, "evaluations per member": run.nfe}, metrics=rows, warnings=run.warnings, figures=[figure],
    )  # fmt: skip
