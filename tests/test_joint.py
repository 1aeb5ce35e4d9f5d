"""Two signals in one measurement against the posterior that two Gaussian priors have in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from suite.errors import InputError
from suite.gaussian import DenseGaussian, Gaussian
from suite.joint import JointPrior, Projection
from suite.linalg import adjoint_error
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import Block, Diagonal, Identity, Tangent
from suite.posterior import METHODS
from suite.process import flow_matching, process
from suite.solver import DDIM
from suite.stepping import Model, knots

SHAPE = (1, 3, 2)
SIZE = 6
GAMMA = 0.7
SIGMA = 0.3


def covariance(length: float, scale: float) -> Tensor:
    place = torch.arange(SIZE, dtype=torch.float64)
    return scale * torch.exp(-(place[:, None] - place[None, :]).abs() / length)


def laws() -> tuple[DenseGaussian, DenseGaussian]:
    mean = torch.linspace(-1, 1, SIZE).reshape(SHAPE)
    tissue = DenseGaussian(mean, covariance(0.7, 1.0).float(), shape=SHAPE)
    haze = DenseGaussian(0.5 + 0 * mean, covariance(4.0, 0.8).float(), shape=SHAPE)
    return tissue, haze


def exact(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (x, h) given `y = x + gamma h + n`, by the conditioning of a Gaussian."""
    tissue, haze = laws()
    prior_mean = torch.cat([tissue.mean_of().flatten(), haze.mean_of().flatten()]).double()
    prior_covariance = torch.block_diag(covariance(0.7, 1.0), covariance(4.0, 0.8))
    a = torch.cat([torch.eye(SIZE), GAMMA * torch.eye(SIZE)], 1).double()
    gain = prior_covariance @ a.T @ torch.linalg.inv(a @ prior_covariance @ a.T + SIGMA**2 * torch.eye(SIZE))
    mean = prior_mean + gain @ (y.flatten().double() - a @ prior_mean)
    return mean, prior_covariance - gain @ a @ prior_covariance


def total() -> Block:
    return Block(Identity(), Diagonal(torch.tensor(GAMMA)), channels=(1, 1))


@pytest.mark.parametrize("name", ["vp", "edm"])
def test_samples_of_both_signals_follow_the_exact_posterior(name: str) -> None:
    y = torch.tensor([1.5, -0.5, 0.3, 2.0, 0.0, 1.0]).reshape(1, *SHAPE)
    dynamics = process(name)
    prior = JointPrior([law.denoiser(dynamics) for law in laws()], (1, 1))
    count = 3000
    draws = METHODS["mmps"]().run(
        prior, Measurement(total(), y, SIGMA), torch.empty(count, 2, *SHAPE[1:]), noise=Noise.of(0), steps=20
    )
    mean, cov = exact(y)
    found = draws.flatten(1).double()
    assert (found.mean(0) - mean).abs().max() < 0.08
    assert (found.T.cov() - cov).abs().max() < 0.1
    assert float((found.T.cov() - cov)[:SIZE, SIZE:].abs().max()) < 0.08  # what one signal gains the other loses


def test_pigdm_is_exact_for_white_signals() -> None:
    white = [Gaussian(m * torch.ones(SHAPE), torch.ones(SHAPE)) for m in (0.0, 1.0)]
    dynamics = flow_matching()
    prior = JointPrior([law.denoiser(dynamics) for law in white], (1, 1))
    y = torch.linspace(-1, 3, SIZE).reshape(1, *SHAPE)
    draws = METHODS["pigdm"]().run(
        prior, Measurement(total(), y, SIGMA), torch.empty(4000, 2, *SHAPE[1:]), noise=Noise.of(1), steps=20
    )
    gain = torch.tensor([1.0, GAMMA]) / (1 + GAMMA**2 + SIGMA**2)
    mean = torch.tensor([0.0, 1.0])[:, None] + gain[:, None] * (y.flatten() - GAMMA)
    assert_close(draws.mean(0).reshape(2, SIZE), mean, rtol=0, atol=0.07)
    variance = 1 - gain * torch.tensor([1.0, GAMMA])
    assert_close(draws.var(0).reshape(2, SIZE).mean(1), variance, rtol=0.05, atol=0)


def test_a_function_as_operator_counts_as_its_tangent() -> None:
    """Written as a function, a sum gives the guide of the operator; a curved one has the right derivative and adjoint."""
    white = [Gaussian(torch.zeros(SHAPE), torch.ones(SHAPE)) for _ in range(2)]
    prior = JointPrior([law.denoiser(flow_matching()) for law in white], (1, 1))
    y, noise, time = torch.randn(1, *SHAPE), Noise.of(0), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    state = noise.normal(torch.empty(1, 2, *SHAPE[1:]))
    known = Measurement(total(), y, SIGMA)
    told = Measurement(lambda u: u[:, :1] + GAMMA * u[:, 1:], y, SIGMA, linear=False)
    pigdm = METHODS["pigdm"](tolerance=1e-10)
    first, second = (pigdm.guide(prior, m, noise)(state, time) for m in (known, told))  # type: ignore[attr-defined]
    assert_close(first, second, rtol=0, atol=1e-5)
    curved = Tangent(lambda u: (u[:, :1] * u[:, 1:]).exp(), state.double())
    bump = torch.randn_like(state).double()
    step = 1e-6
    slope = (curved.function(curved.point + step * bump) - curved.function(curved.point)) / step
    assert_close(curved(bump), slope, rtol=1e-4, atol=1e-4)
    assert adjoint_error(curved, bump, torch.randn(1, *SHAPE, dtype=torch.float64)) < 1e-10


def test_projection_pulls_the_state_onto_the_diffused_sum() -> None:
    white = [Gaussian(torch.zeros(SHAPE), torch.ones(SHAPE)) for _ in range(2)]
    prior = JointPrior([law.denoiser(flow_matching()) for law in white], (1, 1))
    y = torch.ones(1, *SHAPE)
    method = Projection(strength=0.5)
    measurement = Measurement(Block(Identity(), Identity(), channels=(1, 1)), y, 0.0)
    guide = method.guide(prior, measurement, Noise.of(3))
    solver = method.stepper(guide, measurement)
    z = torch.randn(1, 2, *SHAPE[1:])
    t, s = knots(prior.process, torch.tensor([0.8, 0.5], dtype=torch.float64), z)
    mean, eps = Model(prior)(z, t)
    new, _ = solver.step(Model(prior), z, mean, eps, t, s, [])
    noise = Noise.of(3).normal(y)
    assert_close(new.sum(1, keepdim=True).float(), (s.alpha * y + s.sigma * noise).float(), rtol=0, atol=1e-5)
    free, _ = DDIM().step(Model(prior), z, mean, eps, t, s, [])
    assert_close((new[:, :1] - new[:, 1:]).float(), (free[:, :1] - free[:, 1:]).float(), rtol=0, atol=1e-5)
    draws = method.run(prior, measurement, torch.empty(4, 2, *SHAPE[1:]), noise=Noise.of(0), steps=10)
    assert_close(draws.sum(1, keepdim=True), y.expand(4, *SHAPE), rtol=0, atol=1e-4)


def test_dps_serves_the_product() -> None:
    prior = JointPrior([law.denoiser(process("vp")) for law in laws()], (1, 1))
    y = torch.ones(1, *SHAPE)
    out = METHODS["dps"]().run(prior, Measurement(total(), y, 0.05), torch.empty(1, 2, *SHAPE[1:]), noise=Noise.of(0))
    assert float((total()(out) - y).abs().max()) < 0.3


def test_refusals() -> None:
    tissue, haze = laws()
    with pytest.raises(InputError, match="one process for all"):
        JointPrior([tissue.denoiser(process("vp")), haze.denoiser(process("edm"))], (1, 1))
    with pytest.raises(InputError, match="one without an anchor"):
        JointPrior([tissue.denoiser(process("rddm"))], (1,))
    with pytest.raises(InputError, match="as many channel counts"):
        JointPrior([tissue.denoiser(process("vp"))], (1, 1))
    prior = JointPrior([law.denoiser(process("vp")) for law in (tissue, haze)], (1, 1))
    with pytest.raises(InputError, match="2 channels, the state has 3"):
        prior(torch.zeros(1, 3, 3, 2), torch.full((1, 1, 1, 1), 0.5))
    with pytest.raises(InputError, match="strength above 0"):
        Projection(strength=0)
