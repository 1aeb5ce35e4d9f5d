"""The network of mixed experts, and the cache that fuses them for the steps of a grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from domains.robot.expertcache import ExpertCache
from domains.robot.mode import Experts
from domains.robot.network import ActionNetwork
from domains.robot.policy import Policy
from domains.robot.policyconfig import PolicyConfig
from domains.robot.policyfile import PolicyFile, load_policy_file
from suite.errors import InputError
from suite.grid import time_grid
from suite.process import process
from tests.robot_cases import policy_file

OBSERVATION = np.array([0.1, -0.2, 0.5, 0.4, 0.9])
NETWORK = {"kind": "mode", "width": 32, "blocks": 2, "features": 16, "experts": 4, "active": 2}


@pytest.fixture(scope="module")
def file() -> PolicyFile:
    return policy_file(network=NETWORK, stream={"share": 0.0}, iterations=40)


def network(head: str = "edm", **changes: Any) -> ActionNetwork:
    torch.manual_seed(0)
    settings = {"action_dim": 3, "horizon": 6, "condition_dim": 5, "width": 32, "blocks": 3, "features": 16}
    return ActionNetwork("mode", head, process("vp-cosine"), 0.5, (0.01, 40.0), {**settings, **changes}).eval()


def inputs(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 6, generator=rng), torch.randn(batch, 5, generator=rng)


def test_experts_equal_the_weighted_sum_over_all_of_them() -> None:
    """Items of different noise levels in one batch, against the sum written out with the weights of the others at 0."""
    torch.manual_seed(0)
    layer = Experts(width=8, features=6, experts=5, active=2)
    h, embedding = torch.randn(7, 3, 8), 3 * torch.randn(7, 6)
    gates = layer.router(embedding).softmax(-1)
    gates = torch.where(gates >= gates.sort(descending=True).values[:, 1:2], gates, 0.0)
    gates = gates / gates.sum(-1, keepdim=True)
    wanted = torch.zeros_like(h)
    for expert in range(5):
        both = h @ layer.inner[expert].T
        each = (F.silu(both[..., :16]) * both[..., 16:]) @ layer.outer[expert].T
        wanted = wanted + gates[:, expert, None, None] * each
    torch.testing.assert_close(layer(h, embedding), wanted, atol=1e-6, rtol=1e-5)


def test_the_load_balance_is_one_for_equal_use_and_rises_to_the_number_of_experts() -> None:
    layer = Experts(width=8, features=6, experts=4, active=1)
    last = layer.router[2]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 30.0, 0.0, 0.0]))
    assert float(layer.load_balance(torch.randn(9, 6)).detach()) == pytest.approx(4, abs=1e-4)
    with torch.no_grad():
        layer.active = 4
        last.bias.zero_()
    assert float(layer.load_balance(torch.randn(9, 6)).detach()) == pytest.approx(1, abs=1e-5)


def test_the_load_balance_is_part_of_training_only() -> None:
    net, (x0, condition) = network(balance=10.0), inputs()
    t, eps = (
        torch.full((4,), 0.4, dtype=torch.float64),
        torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(2)),
    )
    plain, trained = net.loss(x0, condition, t, eps), net.train().loss(x0, condition, t, eps)
    assert bool((trained > plain + 9.0).all())  # the balance is at least 1 where all items have one noise level


@pytest.mark.parametrize("head", ["edm", "eps", "x0", "v", "flow"])
@pytest.mark.parametrize("active", [1, 2, 4])
def test_the_cache_equals_the_network(head: str, active: int) -> None:
    net, (z, condition) = network(head, active=active), inputs()
    grid = time_grid(net.process, 10, "uniform", start=0.98)
    cache = ExpertCache(net, grid)
    cached, plain = cache.denoiser(), net.denoiser()
    assert sorted(cache.fused) == [(layer, step) for layer in range(3) for step in range(10)]
    assert not cached.differentiable and plain.differentiable
    with torch.no_grad():
        for t in grid[:-1]:
            time = t.reshape(1, 1, 1)
            torch.testing.assert_close(cached(z, time, condition), plain(z, time, condition), atol=1e-5, rtol=1e-5)


def test_the_cache_refuses_what_it_was_not_built_for() -> None:
    net, (z, condition) = network(), inputs(2)
    grid = time_grid(net.process, 10, "uniform", start=0.98)
    cached = ExpertCache(net, grid).denoiser()
    other = time_grid(net.process, 9, "uniform", start=0.98)[1]
    for time in (other.reshape(1, 1, 1), grid[3].reshape(1, 1, 1) + 1e-12, grid[:2].reshape(2, 1, 1)):
        with pytest.raises(InputError, match="built for the 10 noise levels"):
            cached(z, time, condition)


def test_only_a_mixture_of_experts_is_cached() -> None:
    settings = {"action_dim": 3, "horizon": 6, "condition_dim": 5, "width": 16, "blocks": 1}
    net = ActionNetwork("mlp", "edm", process("vp-cosine"), 0.5, (0.01, 40.0), settings)
    with pytest.raises(InputError, match="mode"):
        ExpertCache(net, torch.linspace(0.9, 0, 5))


@pytest.mark.parametrize("wrong", [{"width": 30}, {"active": 5}, {"active": 0}, {"depth": 2}])
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"MoDE|depth"):
        network(**wrong)


def test_it_learns() -> None:
    """One chunk, learned by heart."""
    net, (x0, condition) = network().train(), inputs(1)
    x0, condition = x0.clamp(-1, 1).expand(64, -1, -1), condition.expand(64, -1)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    rng = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        t = 0.05 + 0.9 * torch.rand(64, generator=rng, dtype=torch.float64)
        loss = net.loss(x0, condition, t, torch.randn(x0.shape, generator=rng)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:3])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp-2m", "heun"])
def test_a_policy_acts_the_same_with_and_without_the_cache(file: PolicyFile, sampler: str) -> None:
    plain, cached = (Policy(file, PolicyConfig(sampler=sampler, cache=cache)) for cache in (False, True))
    for _ in range(2):
        np.testing.assert_allclose(cached.act(OBSERVATION).chunk, plain.act(OBSERVATION).chunk, atol=1e-5)


def test_a_policy_of_experts_survives_its_file(file: PolicyFile, tmp_path: Any) -> None:
    file.save(tmp_path / "p.safetensors")
    again = load_policy_file(tmp_path / "p.safetensors")
    assert again.card.architecture == "mode" and again.card.network["experts"] == 4
    config = PolicyConfig(sampler="ddim", cache=True)
    np.testing.assert_allclose(
        Policy(again, config).act(OBSERVATION).action, Policy(file, config).act(OBSERVATION).action, atol=1e-5
    )


def test_the_cache_is_refused_where_the_network_is_differentiated(file: PolicyFile) -> None:
    policy = Policy(file, PolicyConfig(sampler="ddim", cache=True))
    known = np.full((8, 3), np.nan)
    known[7] = 0.2
    with pytest.raises(InputError, match="differentiate through the network"):
        policy.act(OBSERVATION, known=known)
    seen = {"observation.state": torch.tensor(OBSERVATION[None])}
    left = policy.predict_action_chunk(seen)
    with pytest.raises(InputError, match="differentiate through the network"):
        policy.predict_action_chunk(seen, 2, left[:, 3:])
    assert Policy(file, PolicyConfig(sampler="ddim")).predict_action_chunk(seen, 2, left[:, 3:]).shape == (1, 8, 3)


@pytest.mark.parametrize("sampler", ["rti", "warm", "anchor"])
def test_samplers_without_fixed_levels_refuse_the_cache(file: PolicyFile, sampler: str) -> None:
    with pytest.raises(InputError, match=f"{sampler}.*cache"):
        Policy(file, PolicyConfig(sampler=sampler, cache=True))
