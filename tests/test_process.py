"""Processes against the definitions of their papers, written out again with NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from suite.errors import InputError
from suite.process import PROCESSES, Process, process

VANISHING = {"vp-cosine", "flow", "rddm", "resfusion", "sb-ve", "interpolant"}  # alpha(1) = 0


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def values(p: Process, t: float) -> tuple[float, float, float]:
    return float(p.alpha(at(t))), float(p.beta(at(t))), float(p.sigma(at(t)))


def expected(name: str, t: float) -> tuple[float, float, float]:
    """(alpha, beta, sigma) from the defining formulas."""
    if name == "vp":
        a = math.exp(-0.5 * quad(lambda u: 0.1 + u * 19.9, 0, t)[0])
        return a, 0, math.sqrt(1 - a * a)
    if name == "vp-cosine":
        a = math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
        return a, 0, math.sqrt(1 - a * a)
    if name == "ve":
        return 1, 0, 0.01 * 5000**t
    if name == "edm":
        return 1, 0, (t * 80 ** (1 / 7) + (1 - t) * 0.002 ** (1 / 7)) ** 7
    if name == "flow":
        return 1 - t, 0, t
    if name == "ir-sde":
        f = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
        theta = lambda u: 1 - f(u) / f(0)  # noqa: E731
        bar = -math.log(0.005) * quad(theta, 0, t)[0] / quad(theta, 0, 1)[0]
        return math.exp(-bar), 1 - math.exp(-bar), 50 / 255 * math.sqrt(1 - math.exp(-2 * bar))
    if name == "ouve":
        log_ratio = math.log(10)
        var = 0.05**2 * (10 ** (2 * t) - math.exp(-3 * t)) * log_ratio / (1.5 + log_ratio)
        return math.exp(-1.5 * t), 1 - math.exp(-1.5 * t), math.sqrt(var)
    if name == "resfusion":
        slope = 19.9
        end = (-0.1 + math.sqrt(0.01 + 4 * slope * math.log(2))) / slope  # 0.1 u + 9.95 u^2 = 2 log 2
        a = math.exp(-0.5 * (0.1 * end * t + slope / 2 * (end * t) ** 2))
        return 2 * a - 1, 1 - a, math.sqrt(1 - a * a)
    if name == "sb-ve":
        grow = lambda u: 0.4 * 2.6 ** (2 * u)  # noqa: E731
        before, after = quad(grow, 0, t)[0], quad(grow, t, 1)[0]
        return after / (before + after), before / (before + after), math.sqrt(before * after / (before + after))
    if name == "interpolant":
        return 1 - t, t, math.sqrt(t - t * t)
    raise KeyError(name)


PUBLISHED = ["vp", "vp-cosine", "ve", "edm", "flow", "ir-sde", "ouve", "resfusion", "sb-ve", "interpolant"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_schedules_are_those_of_the_papers(name: str) -> None:
    for t in (0.003, 0.2, 0.5, 0.9, 0.999):
        assert values(process(name), t) == pytest.approx(expected(name, t), rel=1e-7, abs=1e-9)


def test_vp_is_the_limit_of_the_discrete_chain() -> None:
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha = process("vp").alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000).numpy()
    assert np.abs(alpha - np.sqrt(abar)).max() < 1e-3


def test_the_interpolant_is_the_limit_of_the_bridge() -> None:
    """As k -> 1 the variance-exploding reference becomes Brownian motion of rate c."""
    bridge, straight = process("sb-ve", k=1 + 1e-6, c=0.49), process("interpolant", noise=0.7)
    for t in (0.1, 0.5, 0.9):
        assert values(bridge, t) == pytest.approx(values(straight, t), rel=1e-4)


def test_rddm_is_the_limit_of_the_authors_increments() -> None:
    steps = 1000
    t = np.arange(1, steps + 1)
    a = np.cumsum(steps + 1.0 - t)
    b = np.sqrt(np.cumsum(t * 1.0) / np.sum(t) * 0.01)
    p, times = process("rddm"), torch.from_numpy(t / steps)
    assert np.abs(p.beta(times).numpy() - a / a[-1]).max() < 2e-3
    assert np.abs(p.sigma(times).numpy() - b).max() < 1e-4
    assert torch.allclose(p.alpha(times), 1 - p.beta(times))


def test_resshift_passes_through_the_authors_table() -> None:
    kappa, steps, p_ = 2.0, 15, 0.3
    root = min(0.04 / kappa, 0.04)
    ramp = ((np.arange(1, steps + 1) - 1) / (steps - 1)) ** p_
    root_eta = root * (0.99 / root) ** ramp
    p, times = process("resshift"), torch.linspace(0, 1, steps, dtype=torch.float64)
    assert np.allclose(p.beta(times).numpy(), root_eta**2)
    assert np.allclose(p.sigma(times).numpy(), kappa * root_eta)
    assert p.beta(at(1.0)) == pytest.approx(0.99**2)


def test_resfusion_ends_where_the_authors_truncate() -> None:
    """With 1000 linear steps they start at T' = 368, where sqrt(abar) is nearest one half, from y/2 + sqrt(3)/2 eps."""
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert abs(int(np.abs(np.sqrt(abar) - 0.5).argmin()) - 368) <= 1
    assert values(process("resfusion"), 1.0) == pytest.approx((0, 0.5, math.sqrt(3) / 2))


@pytest.mark.parametrize("name", PROCESSES)
def test_ends(name: str) -> None:
    p = process(name)
    alpha, beta, sigma = values(p, 0.0)
    assert alpha == pytest.approx(1, abs=1e-3) and beta == pytest.approx(0, abs=1e-3) and 0 <= sigma < 0.05
    alpha, _, _ = values(p, 1.0)
    assert (alpha == 0) == (name in VANISHING), "alpha must vanish exactly or not at all: solvers ask for it"
    assert p.anchored == any(values(p, t)[1] != 0 for t in (0.3, 1.0))


@pytest.mark.parametrize("name", PROCESSES)
def test_derivatives_match_differences(name: str) -> None:
    p, t, h = process(name), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), 1e-6
    for derivative, f in zip(p.derivatives(t), (p.alpha, p.beta, p.sigma), strict=True):
        torch.testing.assert_close(derivative, (f(t + h) - f(t - h)) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_log_snr_decreases_and_inverts(name: str) -> None:
    p = process(name)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    lam = p.log_snr(t)
    assert bool((lam.diff() < 0).all())
    torch.testing.assert_close(p.time_of_log_snr(lam), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_times_per_element(name: str) -> None:
    p = process(name)
    x0, eps, y = (
        torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)
    )
    t = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x = p.marginal(x0, t, eps, y)
    i = (1, 2, 3)
    alpha, beta, sigma = values(p, float(t[i]))
    assert float(x[i]) == pytest.approx(float(alpha * x0[i] + beta * y[i] + sigma * eps[i]))
    torch.testing.assert_close(p.shift(x, t, y), p.alpha(t) * x0 + p.sigma(t) * eps)


@pytest.mark.parametrize("name", PROCESSES)
@given(times=st.lists(st.floats(0.01, 0.97), min_size=3, max_size=3, unique=True).map(sorted))
def test_kernels_carry_marginals_and_compose(name: str, times: list[float]) -> None:
    p, (s, u, t) = process(name), [at(v) for v in times]
    a, b = p.transition(s, t)
    assert float(a * p.alpha(s)) == pytest.approx(float(p.alpha(t)), rel=1e-9)
    assert float(a**2 * p.sigma(s) ** 2 + b**2) == pytest.approx(float(p.sigma(t) ** 2), rel=1e-9)
    (a1, b1), (a2, b2) = p.transition(s, u), p.transition(u, t)
    assert float(a1 * a2) == pytest.approx(float(a), rel=1e-9)
    assert float((a2 * b1) ** 2 + b2**2) == pytest.approx(float(b**2), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_renoising_reaches_the_marginal(name: str) -> None:
    p = process(name)
    shape = (1, 1)
    x0, y = torch.full(shape, 0.7, dtype=torch.float64), torch.full(shape, -0.2, dtype=torch.float64)
    s, t, zero, one = at(0.3), at(0.8), torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    centre = p.renoise(p.marginal(x0, s, zero, y), s, t, zero, y)
    torch.testing.assert_close(centre, p.marginal(x0, t, zero, y))
    by_old = p.renoise(p.marginal(x0, s, one, y), s, t, zero, y) - centre
    by_new = p.renoise(p.marginal(x0, s, zero, y), s, t, one, y) - centre
    assert float(by_old**2 + by_new**2) == pytest.approx(float(p.sigma(t) ** 2))


def test_renoising_refuses_what_has_no_kernel() -> None:
    with pytest.raises(InputError, match="re-noise"):
        process("vp").transition(at(0.8), at(0.3))
    with pytest.raises(InputError, match="alpha = 0"):
        process("rddm").transition(at(0.8), at(1.0))


def test_start_law() -> None:
    eps, y = torch.ones(1, 1, 2, dtype=torch.float64), torch.full((1, 1, 2), 3.0, dtype=torch.float64)
    alpha, beta, sigma = values(process("ouve"), 1.0)
    torch.testing.assert_close(process("ouve").start(eps, y), (alpha + beta) * y + sigma * eps)
    torch.testing.assert_close(process("resfusion").start(eps, y), y / 2 + math.sqrt(3) / 2 * eps)
    for name in ("sb-ve", "interpolant"):
        torch.testing.assert_close(process(name).start(eps, y), y)
    torch.testing.assert_close(process("edm").start(eps), 80 * eps)


def test_anchored_process_wants_y() -> None:
    with pytest.raises(InputError, match="anchored"):
        process("ouve").shift(torch.zeros(1, 1), at(0.5), None)


def test_unknown_process_or_parameter() -> None:
    with pytest.raises(InputError, match="resshift"):
        process("ddpm")
    with pytest.raises(InputError, match="vp"):
        process("vp", gamma=2.0)
