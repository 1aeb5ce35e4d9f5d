"""Posterior accuracy on problems whose posterior is known in closed form, beside deepinv's samplers.

    python benchmarks/posterior_accuracy.py [--quick] [--problems N] [--json FILE]

Nothing is trained: every method, ours and deepinv's, gets the same exact denoiser and the same measurements. White and
correlated Gaussian priors and a mixture of three on 4 x 4 pixels, each with a mask, a blur and a small tomography, noise of
0.02, 0.2 and 2 times the operator's norm; 16 truths, 199 samples for each. The figures are those of `suite.verify`, which says
how they are computed: 0, 1 and 0.9 are exact. deepinv's methods run with their defaults (`benchmarks/_deepinv.py`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from suite.posterior import METHODS
from suite.testbed import Problem
from suite.verify import SAMPLES, grade_method, row

PROBLEMS = [
    Problem("white", "mask", "vp", 0.2),
    Problem("white", "blur", "vp", 0.02),
    Problem("white", "ct", "vp", 2.0),
    Problem("correlated", "mask", "vp", 0.02),
    Problem("correlated", "blur", "vp", 2.0),
    Problem("correlated", "ct", "vp", 0.2),
    Problem("mixture", "mask", "vp", 2.0),
    Problem("mixture", "blur", "vp", 0.2),
    Problem("mixture", "ct", "vp", 0.02),
]
QUICK = [PROBLEMS[i] for i in (0, 5, 7)]
SMC_PROBLEMS, SMC_TRUTHS = [PROBLEMS[i] for i in (0, 5, 7)], 2  # a filter of particles for every sample takes long

HALF_WIDTH = 4.0  # nearly all values of the laws lie within +-4


def ours(problem: Problem, quick: bool) -> Iterator[dict[str, Any]]:
    for name, method in METHODS.items():
        if name != "smc":
            yield grade_method(method(), problem)
        elif problem in SMC_PROBLEMS and not quick:
            yield grade_method(method(), replace(problem, truths=SMC_TRUTHS))


def peers(problem: Problem, quick: bool) -> Iterator[dict[str, Any]]:
    import _deepinv as d

    unit, as_is = d.Range(-HALF_WIDTH, 2 * HALF_WIDTH), d.Range(0.0, 1.0)
    sde_steps = 100 if quick else 1000  # 1000 is deepinv's default
    builds: dict[str, tuple[Callable[..., Any], int, Any]] = {
        "DDRM": (d.ddrm, 100, unit),
        "DPS": (d.dps, sde_steps, unit),
        "DPS, annealed": (partial(d.dps, guidance="annealed"), sde_steps, unit),
        "DiffPIR": (d.diffpir, 100, unit),
        "DiffPIR, zeta 1": (partial(d.diffpir, zeta=1.0), 100, unit),
        "PiGDM": (d.pigdm, sde_steps, as_is),
        "moment matching": (d.moment_matching, sde_steps, as_is),
    }
    norm = float(torch.linalg.matrix_norm(problem.matrix, 2))
    for name, (build, steps, span) in builds.items():
        denoiser = d.SharedDenoiser(exact(problem), span)
        scale = span.width * norm
        physics = d.decomposed(problem.matrix / norm, problem.law.shape, problem.sigma / scale)
        shifted = problem.data.flatten(1) - span.low * problem.matrix.sum(1).float()
        y = (shifted / scale).repeat_interleave(SAMPLES, 0)
        torch.manual_seed(0)
        draws = build(denoiser, steps)(y, physics).float().detach()
        yield row(f"deepinv {name}", "peer", problem, denoiser.evaluations, span.low + span.width * draws)


def exact(problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """`E[u | u + sigma eps]` of the problem's prior."""
    return lambda u, sigma: problem.law.posterior_mean(u, torch.ones_like(sigma), sigma)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method, ours first: median and extremes over the problems."""
    out = []
    names = dict.fromkeys(r["method"] for r in rows)
    for name in sorted(names, key=lambda name: name.startswith("deepinv")):
        chosen = [r for r in rows if r["method"] == name]
        line: dict[str, Any] = {"method": name, "nfe": max(r["nfe"] for r in chosen)}
        for column in ("mean_error", "std_ratio", "coverage90"):
            values = [r[column] for r in chosen if r[column] is not None]
            line[column] = f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else None
        line["exact in"] = f"{sum(r['pass'] for r in chosen)} of {len(chosen)}"
        out.append(line)
    return out


def line(values: Iterable[Any]) -> str:
    return (
        "| "
        + " | ".join("not finite" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in values)
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="three problems, without smc, 100 steps for deepinv's slow methods"
    )
    parser.add_argument("--problems", type=int, help="only the first N")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the items have 16 pixels
    columns = ("kind", "operator", "noise", "method", "nfe", "mean_error", "std_ratio", "coverage90")
    print(line(columns) + "\n|" + "---|" * len(columns))
    rows, skipped = [], ""
    for problem in (QUICK if options.quick else PROBLEMS)[: options.problems]:
        for grade in (ours, peers):
            try:
                for r in grade(problem, options.quick):
                    rows.append(r)
                    print(line(r[c] for c in columns), flush=True)
            except ImportError as error:
                skipped = f"\ndeepinv is left out: {error}."
    totals = ("method", "nfe", "mean_error", "std_ratio", "coverage90", "exact in")
    print("\nOver the problems, median (least to largest):\n")
    print(line(totals) + "\n|" + "---|" * len(totals))
    print("\n".join(line(r[c] for c in totals) for r in summary(rows)) + skipped)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "summary": summary(rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
