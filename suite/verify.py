"""The proof: every sampler against posteriors known in closed form (`suite.testbed`).

A row is one sampler on one problem: several truths drawn from the prior, a measurement of each, and many samples for each
measurement, compared with the exact posterior:

    mean_error   RMS over truths and entries of (sample mean - exact mean) / exact std, less the share that the finite number of
                 samples has in its square
    std_ratio    sample variance over exact variance, averaged over truths; its root, averaged over entries
    coverage90   probability of the truth, given its measurement, to lie between the samples of rank k and S + 1 - k, out of
                 S = 20 k - 1: 0.9 for exact samples, free of the chance in which truths were drawn
    weight_error total variation between the sample's and the exact weights of a mixture's components, root mean square over
                 truths, less the share of the finite number of samples

A method's row is a "sample" row where the method claims the kind of prior (`PosteriorMethod.exact_for`), else a "point" row.
Both are graded; only "sample" rows count for the overall verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from suite.errors import InputError
from suite.gaussian import GaussianMixture
from suite.grid import time_grid
from suite.noise import Noise
from suite.posterior import METHODS
from suite.posterior.base import PosteriorMethod
from suite.process import PROCESSES
from suite.solver import SOLVERS, Solver, sample
from suite.testbed import Law, Problem

SAMPLES = 199  # for each truth; 20 k - 1
MEAN_ERROR, STD_RATIO, COVERAGE, WEIGHT_ERROR = 0.05, (0.95, 1.05), (0.88, 0.92), 0.05

# Evaluations at which a solver is graded: first-order ones need more.
EVALUATIONS = {"ddim": 150, "euler": 150, "heun": 99, "pc": 199, "dpmpp-sde": 100}
OTHER_SOLVERS = 50

METHOD_PROBLEMS = [
    Problem("white", "mask", "vp", 0.2),
    Problem("white", "blur", "edm", 0.02),
    Problem("white", "ct", "flow", 2.0),
    Problem("white", "mri", "vp-cosine", 0.2),
    Problem("correlated", "mask", "ve", 0.02),
    Problem("correlated", "blur", "vp", 2.0),
    Problem("correlated", "ct", "edm", 0.2),
    Problem("correlated", "mri", "flow", 0.2),
    Problem("mixture", "mask", "vp", 2.0),
    Problem("mixture", "blur", "edm", 0.2),
    Problem("mixture", "ct", "vp-cosine", 0.2),
    Problem("mixture", "mri", "ve", 2.0),
    Problem("white", "mask", "ir-sde", 0.2),
    Problem("correlated", "ct", "rddm", 0.2),
    Problem("correlated", "mri", "resshift", 0.02),
    Problem("mixture", "blur", "resfusion", 0.2),
]
QUICK_METHOD_PROBLEMS = [METHOD_PROBLEMS[i] for i in (0, 6, 10, 12)]
SOLVER_PROBLEMS = [Problem("correlated", "none", name) for name in PROCESSES] + [Problem("mixture", "none", "vp")]
QUICK_PROCESSES, QUICK_SOLVER = ("vp", "ir-sde"), "dpmpp-2m"  # a quick run tries the others with this solver only


NO_SVD = ("mri",)  # operators without a closed-form singular value decomposition
SMC_PROBLEMS = [METHOD_PROBLEMS[i] for i in (0, 6, 10, 12)]

Progress = Callable[[int, int, str], None]
Grade = dict[str, float | None]


# --- comparing samples with the exact law ------------------------------------------------------------------------------


def grade(samples: Tensor, exact: Sequence[Law]) -> Grade:
    """The four figures for samples `(truths, S, *shape)`, S = 20 k - 1, and the exact posterior of each truth.

    All are None when a sample is not finite.
    """
    x = samples.double().flatten(2)
    count = x.shape[1]
    if (count + 1) % 20:
        raise InputError(f"coverage needs 19, 39, ... samples for an interval of exactly 90 %, not {count}")
    if not bool(torch.isfinite(x).all()):
        return dict.fromkeys(("mean_error", "std_ratio", "coverage90", "weight_error"))
    mean, std = (torch.stack(m) for m in zip(*(moments(law) for law in exact), strict=True))
    variance = x.var(1) / std**2
    excess = ((x.mean(1) - mean) / std).square().mean() - variance.mean() / count
    ordered, k = x.sort(1).values, (count + 1) // 20
    inside = [
        cdf(law, high) - cdf(law, low) for law, low, high in zip(exact, ordered[:, k - 1], ordered[:, -k], strict=True)
    ]
    return {
        "mean_error": float(excess.clamp_min(0).sqrt()),
        "std_ratio": float(variance.mean(0).sqrt().mean()),
        "coverage90": float(torch.stack(inside).mean()),
        "weight_error": weight_error(samples, exact),
    }


def weight_error(samples: Tensor, exact: Sequence[Law]) -> float | None:
    """`sum_k sqrt(mean over truths of (w'_k - w_k)^2) / 2`, w' being the mean responsibilities; None but for mixtures."""
    mixtures = [law for law in exact if isinstance(law, GaussianMixture)]
    if not mixtures:
        return None
    shares = torch.stack([law.responsibilities(x) for law, x in zip(mixtures, samples, strict=True)])
    weights = torch.stack([law.weights for law in mixtures])
    square = (shares.mean(1) - weights).square() - shares.var(1) / shares.shape[1]
    return float(square.mean(0).clamp_min(0).sqrt().sum() / 2)


def moments(law: Law) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every entry, `(n,)` each."""
    return law.mean_of()[0].double().flatten(), law.covariance().diagonal().sqrt()


def cdf(law: Law, x: Tensor) -> Tensor:
    """Probability of every entry to lie below `x` `(n,)`."""
    if isinstance(law, GaussianMixture):
        parts = torch.stack([cdf(component, x) for component in law.components])
        return torch.einsum("k,kn->n", law.weights, parts)
    mean, std = moments(law)
    return torch.special.ndtr((x - mean) / std)


def passes(figures: Grade) -> bool:
    """Within the thresholds; a figure that could not be computed is outside."""
    mean, std, coverage, weight = (figures[k] for k in ("mean_error", "std_ratio", "coverage90", "weight_error"))
    if mean is None or std is None or coverage is None:
        return False
    return (
        mean <= MEAN_ERROR
        and STD_RATIO[0] <= std <= STD_RATIO[1]
        and COVERAGE[0] <= coverage <= COVERAGE[1]
        and (weight is None or weight <= WEIGHT_ERROR)
    )


# --- one sampler on one problem ----------------------------------------------------------------------------------------


def row(name: str, estimator: str, problem: Problem, nfe: int, samples: Tensor) -> dict[str, Any]:
    """The row of a sampler's draws `(truths * S, *shape)`."""
    figures = grade(samples.unflatten(0, (problem.truths, -1)), problem.posteriors)
    return {
        "method": name,
        "estimator": estimator,
        "prior": "mixture" if problem.kind == "mixture" else "gaussian",
        "kind": problem.kind,
        "operator": problem.operator,
        "process": problem.process,
        "noise": problem.noise,
        "nfe": nfe,
        **figures,
        "pass": passes(figures),
    }


def grade_method(method: PosteriorMethod, problem: Problem, samples: int = SAMPLES) -> dict[str, Any]:
    """The row of a posterior method at the steps it advertises.

    Raises:
        InputError: the method cannot serve the problem.
    """
    like = torch.empty(problem.truths * samples, *problem.law.shape)
    draws = method.run(
        problem.law.denoiser(problem.dynamics),
        problem.measurement(samples),
        like,
        noise=Noise.of(0, [method.name]),
        y=problem.anchor_for(samples),
    )
    estimator = "sample" if problem.kind in method.exact_for else "point"
    return row(method.name, estimator, problem, method.steps, draws)


def grade_solver(solver: Solver, problem: Problem, samples: int = SAMPLES) -> dict[str, Any]:
    """The row of a solver on the prior itself, from the exact law at the start."""
    process, law = problem.dynamics, problem.law
    noise = Noise.of(0, [solver.name])
    evaluations = EVALUATIONS.get(solver.name, OTHER_SOLVERS)
    kind = "uniform" if solver.name == "euler" else "logsnr"
    grid = time_grid(process, solver.steps_for(evaluations), kind)
    start = [law.marginal(process, 1.0, problem.anchor(i)).sample(samples, noise) for i in range(problem.truths)]
    draws = sample(law.denoiser(process), solver, grid, torch.cat(start), y=problem.anchor_for(samples), noise=noise)
    return row(solver.name, "sample", problem, evaluations, draws)


# --- all of them -------------------------------------------------------------------------------------------------------


def tasks(quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is graded, `(name, how)`: every solver and every posterior method."""
    for problem in SOLVER_PROBLEMS:
        for name, make in SOLVERS.items():
            spared = quick and problem.process not in QUICK_PROCESSES and name != QUICK_SOLVER
            if name != "euler" and not spared:
                yield f"{name}, {problem.process}", partial(grade_solver, make(), problem)
    for kind in ("correlated", "mixture"):
        yield "euler, flow", partial(grade_solver, SOLVERS["euler"](), Problem(kind, "none", "flow"))
    for problem in QUICK_METHOD_PROBLEMS if quick else METHOD_PROBLEMS:
        for name, method in METHODS.items():
            if name == "ddrm" and problem.operator in NO_SVD:
                continue
            if name == "smc":  # a filter of particles for each sample: fewer truths take as long
                if problem not in SMC_PROBLEMS:
                    continue
                problem = replace(problem, truths=4)
            yield f"{name}, {problem.operator}", partial(grade_method, method(), problem)


def run(quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Grade everything: `{"rows": [...], "pass": bool}`; every row labelled "sample" has to pass.

    Args:
        quick: fewer problems, still every process, every solver and every method.
        progress: called with the number of rows done, their total, and what comes next.
    """
    todo = list(tasks(quick))
    rows = []
    for number, (name, grade_it) in enumerate(todo):
        if progress is not None:
            progress(number, len(todo), name)
        rows.append(grade_it())
    return {"rows": rows, "pass": all(r["pass"] for r in rows if r["estimator"] == "sample")}
