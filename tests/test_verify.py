"""The proof holds, covers everything, and can fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from suite.noise import Noise
from suite.posterior import METHODS
from suite.process import PROCESSES
from suite.solver import SOLVERS
from suite.testbed import Problem
from suite.verify import SAMPLES, grade, grade_method, passes, run


@pytest.fixture(scope="module")
def quick() -> dict[str, Any]:
    return run(quick=True)


def test_every_row_that_claims_to_sample_passes(quick: dict[str, Any]) -> None:
    assert [r for r in quick["rows"] if r["estimator"] == "sample" and not r["pass"]] == []
    assert quick["pass"]


def test_every_solver_method_and_process_has_a_row(quick: dict[str, Any]) -> None:
    assert {r["method"] for r in quick["rows"]} == set(SOLVERS) | set(METHODS)
    assert {r["process"] for r in quick["rows"] if r["operator"] == "none"} == set(PROCESSES)


def test_rows_have_the_promised_fields(quick: dict[str, Any]) -> None:
    promised = {"method", "estimator", "prior", "operator", "nfe", "mean_error", "std_ratio", "coverage90"}
    for r in quick["rows"]:
        assert promised | {"weight_error", "pass"} <= set(r)
        assert (r["weight_error"] is None) == (r["prior"] == "gaussian")


def test_point_estimators_claim_nothing() -> None:
    for method in METHODS.values():
        assert (method.estimator == "sample") == bool(method.exact_for)


def exact_samples(problem: Problem, seed: int) -> torch.Tensor:
    noise = Noise.of(seed)
    return torch.stack([law.sample(SAMPLES, noise) for law in problem.posteriors])


@pytest.mark.parametrize("kind", ["white", "correlated", "mixture"])
def test_exact_samples_pass(kind: str) -> None:
    problem = Problem(kind, "ct", "vp", 0.1)
    assert passes(grade(exact_samples(problem, 1), problem.posteriors))


@pytest.mark.parametrize("fault", ["narrow", "wide", "shifted"])
def test_a_wrong_sampler_is_caught(fault: str) -> None:
    problem = Problem("white", "mask", "vp", 0.2)
    x = exact_samples(problem, 2)
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    broken = {"narrow": mean + 0.9 * (x - mean), "wide": mean + 1.1 * (x - mean), "shifted": x + 0.1 * std}[fault]
    assert not passes(grade(broken, problem.posteriors))


def test_wrong_mixture_weights_are_caught() -> None:
    problem = Problem("mixture", "none", "vp", truths=2)
    noise = Noise.of(3)
    uniform = [torch.cat([c.sample(67, noise) for c in law.components])[:SAMPLES] for law in problem.posteriors]  # type: ignore[union-attr]
    found = grade(torch.stack(uniform), problem.posteriors)
    assert found["weight_error"] is not None and found["weight_error"] > 0.1
    assert not passes(found)


def test_samples_that_are_not_finite_fail() -> None:
    problem = Problem("white", "mask", "vp", 0.2)
    x = exact_samples(problem, 4)
    x[0, 0] = torch.nan
    assert not passes(grade(x, problem.posteriors))


def test_rows_repeat_exactly() -> None:
    problem = Problem("white", "mask", "vp", 0.2, truths=2)
    assert grade_method(METHODS["daps"](), problem) == grade_method(METHODS["daps"](), problem)
