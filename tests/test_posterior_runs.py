"""Whole runs of the posterior methods: what they promise besides accuracy, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from posterior_cases import Case
from torch import Tensor
from torch.testing import assert_close

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.gaussian import ExactDenoiser
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior import METHODS
from suite.posterior.base import Guided, OwnStep, PosteriorMethod
from suite.posterior.daps import DAPS
from suite.posterior.ddnm import DDNM, DDNMPlus
from suite.posterior.ddrm import DDRM
from suite.posterior.dds import DDS
from suite.posterior.diffpir import DiffPIR
from suite.posterior.dps import DPS
from suite.posterior.smc import SMC
from suite.testbed import prior

NO_SVD = ("mri",)
STEPS = 6


def make(name: str) -> PosteriorMethod:
    return SMC(particles=6) if name == "smc" else METHODS[name]()


def served(*names: str, operators: tuple[str, ...] = ("ct", "mri")) -> list[tuple[str, str]]:
    """Methods (all of them by default) with the operators they serve."""
    return [(m, op) for m in names or tuple(METHODS) for op in operators if not (m == "ddrm" and op in NO_SVD)]


class Watched(Denoiser):
    """A denoiser that keeps what it was asked."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.process)
        self.inner = inner
        self.asked: list[tuple[Tensor, float]] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.asked.append((x.detach(), float(t.max())))
        return self.inner(x, t, y)


class Cached(Denoiser):
    """A network that autograd cannot pass through."""

    differentiable = False

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.process)
        self.inner = inner

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.inner(x.detach(), t, y).detach()


# --- what every run promises -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "operator"), served())
def test_an_item_does_not_know_its_neighbours(name: str, operator: str) -> None:
    """Alone, in a batch, and in a batch whose one measurement serves all; with a noise level of its own."""
    case = Case("mixture", operator, "ir-sde", truths=3)
    std = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) * case.problem.sigma
    if name == "ddrm":  # whose operator has a singular value decomposition for one noise level only
        std = std[1:2].expand(3)
    names = ["first", "second", "third"]

    def run(items: slice, data: slice) -> Tensor:
        noise = std[data] if name != "ddrm" else float(std[0])
        measurement = Measurement(case.problem.linear, case.data[data], noise)
        source, y = Noise.of(4, names[items]), None if case.y is None else case.y[items]
        return make(name).run(case.prior, measurement, case.like[items], noise=source, steps=STEPS, y=y)

    batch = run(slice(None), slice(None))
    for i in range(3):
        alone = run(slice(i, i + 1), slice(i, i + 1))
        assert_close(alone, batch[i : i + 1], rtol=0, atol=1e-5)
    assert_close(run(slice(None), slice(1, 2))[1], batch[1], rtol=0, atol=1e-5)
    assert (batch[0] - batch[1]).abs().max() > 1e-2


NONLINEAR = ("dps", "pigdm", "unit_steps", "daps")
APPROACH = ("dps", "stsl", "unit_steps")
"""They only approach noise-free data, but for a mask."""
GUIDED = [name for name, method in METHODS.items() if issubclass(method, Guided)]


@pytest.mark.parametrize(
    ("name", "process"),
    [(m, p) for m in METHODS for p in (("ir-sde", "resfusion", "ouve") if m in GUIDED else ("rddm", "resfusion"))],
)
def test_the_anchor_is_no_information_by_itself(name: str, process: str) -> None:
    """Where x0 does not depend on y, every y gives the same estimate: the methods work on x_t - beta y.

    A start with alpha > 0 puts y in place of x0; the guided methods get another one, the others alpha = 0.
    """
    case = Case("mixture", "ct", process)
    denoiser = ExactDenoiser(prior("mixture"), case.problem.dynamics)
    far = 3 * Noise.of(8).normal(case.like)
    init = {"init": torch.zeros_like(far)} if name in GUIDED else {}
    one, other = (
        METHODS[name](**init).run(denoiser, case.measurement, case.like, noise=Noise.of(1), steps=STEPS, y=y)
        for y in (torch.zeros_like(far), far)
    )
    assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_keeps_to_its_evaluations_and_reports_its_steps(name: str, steps: int) -> None:
    case = Case("mixture", "ct")
    denoiser, calls = Watched(case.prior), []
    out = make(name).run(
        denoiser,
        case.measurement,
        case.like,
        noise=Noise.of(0),
        steps=steps,
        callback=lambda number, x, mean: calls.append((number, x, mean)),
    )
    assert len(denoiser.asked) <= steps
    assert bool(out.isfinite().all()) and out.shape == case.like.shape
    assert [number for number, *_ in calls] == list(range(1, len(calls) + 1))
    if steps > 1:
        assert_close(calls[-1][1], out)
        assert calls[-1][2].shape == case.like.shape


@pytest.mark.parametrize("name", METHODS)
def test_seeds_repeat_and_differ(name: str) -> None:
    case = Case("mixture", "ct")
    runs = [
        make(name).run(case.prior, case.measurement, case.like, noise=Noise.of(seed), steps=STEPS) for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("name", "operator"),
    served(
        *(m for m in METHODS if m not in APPROACH and m != "smc" and m != "red_diff"), operators=("mask", "ct", "mri")
    )
    + served(*APPROACH, operators=("mask",)),
)
def test_data_without_noise_are_met(name: str, operator: str) -> None:
    case = Case("white", operator, noise=0.0)
    method = make(name)
    if isinstance(method, DDNM | DDS | DiffPIR):
        method.iterations = 60
    out = method.run(case.prior, case.measurement, case.like, noise=Noise.of(0))
    assert float(case.measurement.residual(out).abs().max() / case.data.abs().max()) < 1e-3


@pytest.mark.parametrize("name", [m for m in METHODS if not METHODS[m].differentiates])
def test_cached_networks_serve_the_methods_without_a_gradient(name: str) -> None:
    case = Case("mixture", "ct")
    cached, plain = (
        make(name).run(denoiser, case.measurement, case.like, noise=Noise.of(0), steps=STEPS)
        for denoiser in (Cached(case.prior), case.prior)
    )
    assert torch.equal(cached, plain)


# --- options of the guided methods -------------------------------------------------------------------------------------


def test_the_levels_of_a_run_are_those_asked_for() -> None:
    case = Case("mixture", "ct", "ir-sde")
    denoiser, init = Watched(case.prior), torch.full_like(case.like, 0.5)
    method = DDS(start=0.7, init=init, renoise=False, finest=0.05)
    method.run(denoiser, case.measurement, case.like, noise=Noise.of(0), steps=5, y=case.y)
    process, t = case.problem.dynamics, case.time(0.7)
    first, last = denoiser.asked[0], case.time(denoiser.asked[-1][1])
    assert first[1] == pytest.approx(0.7)
    assert case.y is not None
    assert_close(first[0], process.alpha(t) * init + process.beta(t) * case.y)  # no noise
    assert float(process.sigma(last) / process.alpha(last)) == pytest.approx(0.05, rel=1e-3)


def test_a_run_without_noise_draws_none() -> None:
    case = Case("mixture", "ct")
    method = DDS(init=torch.zeros_like(case.like), renoise=False)
    runs = [method.run(case.prior, case.measurement, case.like, noise=Noise.of(s), steps=STEPS) for s in (0, 1)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp-2m", "dpmpp-sde"])
@pytest.mark.parametrize("name", ["pigdm", "mmps", "dds"])
def test_guided_methods_take_any_solver(name: str, solver: str) -> None:
    case = Case("mixture", "mri", "resfusion")
    denoiser = Watched(case.prior)
    method = METHODS[name](solver=solver)  # type: ignore[call-arg]
    out = method.run(denoiser, case.measurement, case.like, noise=Noise.of(0), steps=9, y=case.y)
    assert bool(out.isfinite().all()) and len(denoiser.asked) <= 9


def test_a_sampler_ends_with_a_draw_at_its_last_level() -> None:
    """From one level alone, pure noise, it is the draw for the prior N(mean, s^2)."""
    case = Case("white", "ct", "flow", truths=1)
    like = case.like.expand(3000, -1, -1, -1)
    method = METHODS["pigdm"]()
    assert isinstance(method, Guided)
    t = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    x = method.last_draw(case.prior, case.measurement, torch.zeros_like(like), t, Noise.of(0), None)
    exact = case.problem.posteriors[0]
    gap = (x.flatten(1).mean(0) - exact.mean_of()[0].flatten()) / exact.covariance().diagonal().sqrt()
    assert gap.abs().max() < 0.1
    assert_close(x.flatten(1).var(0) / exact.covariance().diagonal(), torch.ones(16).double(), rtol=0, atol=0.12)


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [m for m in METHODS if METHODS[m].differentiates])
def test_methods_that_differentiate_refuse_cached_networks(name: str) -> None:
    case = Case("mixture", "ct")
    with pytest.raises(InputError, match=rf"{name} differentiates .* use dds, diffpir, ddnm, daps or red_diff"):
        make(name).run(Cached(case.prior), case.measurement, case.like, noise=Noise.of(0), steps=2)


@pytest.mark.parametrize("name", [m for m in METHODS if m not in NONLINEAR])
def test_an_operator_that_is_not_linear_needs_a_method_for_it(name: str) -> None:
    case = Case("mixture", "ct")
    measurement = Measurement(lambda x: x.tanh(), case.like.zero_(), 0.1, linear=False)
    with pytest.raises(InputError, match="linear operator; for others use dps, pigdm, unit_steps, or daps"):
        make(name).run(case.prior, measurement, case.like, noise=Noise.of(0), steps=2)


@pytest.mark.parametrize("name", NONLINEAR)
def test_and_those_serve_it(name: str) -> None:
    """Saturating data of one pixel each: the estimate moves from the prior to where they point."""
    case = Case("white", "mask")
    truth = case.state(0.05)
    measurement = Measurement(lambda x: 2 * torch.tanh(x / 2), 2 * torch.tanh(truth / 2), 0.05, linear=False)
    out = make(name).run(case.prior, measurement, case.like, noise=Noise.of(0), steps=30)
    assert float((out - truth).square().mean().sqrt()) < 0.3


def test_ddrm_without_a_singular_value_decomposition_names_what_works() -> None:
    case = Case("mixture", "mri")
    with pytest.raises(InputError, match="use ddnm_plus or dds"):
        DDRM().run(case.prior, case.measurement, case.like, noise=Noise.of(0), steps=2)


@pytest.mark.parametrize(("name", "instead"), [("smc", "use daps"), ("red_diff", "use ddnm or dds")])
def test_methods_that_weigh_by_the_noise_need_some(name: str, instead: str) -> None:
    case = Case("mixture", "ct", noise=0.0)
    with pytest.raises(InputError, match=instead):
        make(name).run(case.prior, case.measurement, case.like, noise=Noise.of(0), steps=2)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (DDS, {"solver": "rk45"}, "no solver named 'rk45'; choose one of ddim, "),
        (DDS, {"data_std": 0.0}, "must be positive, not 0.0"),
        (DDS, {"gamma": 0.0}, "must be positive: gamma is 0.0"),
        (DDS, {"strength": -1.0}, "must be positive: .* strength -1.0"),
        (DDS, {"grid": "linear"}, "no time grid named 'linear'; choose one of uniform"),
        (DDS, {"eta": 1.5}, "eta lies between 0"),
        (DiffPIR, {"weight": 0.0}, "weight > 0"),
        (DiffPIR, {"zeta": 1.1}, r"zeta in \[0, 1\]"),
        (DPS, {"form": "square"}, "'annealed' and 'norm', not 'square'"),
        (DPS, {"form": "norm", "solver": "ddim"}, "takes no solver; use form='annealed'"),
        (DDRM, {"eta": -0.1}, "between 0 and 1; they are -0.1 and 1.0"),
        (DDRM, {"solver": "ddim"}, "takes no solver; use pigdm, mmps or dds"),
        (DDNMPlus, {"eta": 2.0}, "between 0 and 1; it is 2.0"),
        (DDNMPlus, {"renoise": False}, "takes no solver; use pigdm, mmps or dds"),
        (DAPS, {"renoise": "none"}, "'shared' or 'fresh' noise, not 'none'"),
        (SMC, {"particles": 0}, "at least one particle, not 0"),
    ],
)
def test_bad_arguments_are_told(method: Any, options: dict[str, Any], message: str) -> None:
    case = Case("mixture", "ct")
    with pytest.raises(InputError, match=message):
        method(**options).run(case.prior, case.measurement, case.like, noise=Noise.of(0), steps=2)


def test_methods_of_their_own_step_are_named_as_such() -> None:
    assert {m.name for m in METHODS.values() if issubclass(m, OwnStep)} == {"ddrm", "ddnm_plus"}
