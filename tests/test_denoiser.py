"""Network heads: what a network is trained to output, read back as E[x0 | x_t]."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from suite.denoiser import HEADS, Denoiser, HeadDenoiser, noise_estimate, target
from suite.errors import InputError
from suite.process import PROCESSES, process

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("head", HEADS)
def test_head_round_trip(head: str, name: str) -> None:
    p = process(name)
    x0, eps, y = randn(3, 1, 4), randn(3, 1, 4, seed=1), randn(3, 1, 4, seed=2)
    t = torch.tensor([0.02, 0.5, 0.97], dtype=F64).reshape(3, 1, 1)
    x = p.marginal(x0, t, eps, y)
    output = target(head, p, x0, eps, t, y)
    mean, noise = HeadDenoiser(lambda *_: output, p, head).predict(x, t, y)
    torch.testing.assert_close(mean, x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(noise, eps, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("head", HEADS)
def test_head_at_the_start_is_right_or_refused(head: str, name: str) -> None:
    p = process(name)
    x0, eps, y, t = randn(1, 1, 4), randn(1, 1, 4, seed=1), randn(1, 1, 4, seed=2), torch.ones(1, 1, 1, dtype=F64)
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    silent = {"eps", "score"} if alpha == 0 else set()
    if name == "rddm":
        silent |= {"flow"}  # alpha = alpha' = 0: the velocity there does not contain x0
    if name in ("sb-ve", "interpolant"):
        silent |= {"flow", "v", "resnoise"}  # alpha = sigma = 0
    if head in silent:
        with pytest.raises(InputError, match=f"{head} head.*x0 head"):
            HeadDenoiser(lambda *_: torch.zeros_like(x0), p, head)(y if sigma == 0 else x0, t, y)
        return
    output = target(head, p, x0, eps, t, y)
    mean = HeadDenoiser(lambda *_: output, p, head)(p.marginal(x0, t, eps, y), t, y)
    torch.testing.assert_close(mean, x0, rtol=1e-6, atol=1e-6)


def test_resnoise_weight_is_the_limit_of_the_authors() -> None:
    """Resfusion trains on eps + (1 - sqrt(a_n)) sqrt(1 - abar_n) / beta_n R; ours is its limit for fine steps."""
    steps = 100_000
    p = process("resfusion")
    t = torch.linspace(0.05, 1, steps, dtype=F64)
    abar = 1 - p.sigma(t) ** 2
    beta = 1 - abar[1:] / abar[:-1]
    authors = (1 - torch.sqrt(1 - beta)) * torch.sqrt(1 - abar[1:]) / beta
    x0, eps = torch.zeros(1, steps - 1, dtype=F64), torch.zeros(1, steps - 1, dtype=F64)
    ours = target("resnoise", p, x0, eps, t[None, 1:], torch.ones_like(x0))
    torch.testing.assert_close(ours[0], authors, rtol=1e-4, atol=0)


def test_resnoise_takes_a_discrete_weight() -> None:
    p = process("resfusion")
    x0, eps, y, t = (
        randn(1, 1, 4),
        randn(1, 1, 4, seed=1),
        randn(1, 1, 4, seed=2),
        torch.full((1, 1, 1), 0.6, dtype=F64),
    )

    def weight(t: Tensor) -> Tensor:
        return p.sigma(t) / (1 + 0.9)  # sqrt(a_n) = 0.9

    output = target("resnoise", p, x0, eps, t, y, weight)
    mean = HeadDenoiser(lambda *_: output, p, "resnoise", weight=weight)(p.marginal(x0, t, eps, y), t, y)
    torch.testing.assert_close(mean, x0)


@pytest.mark.parametrize("head", ["residual", "resnoise"])
def test_heads_that_need_y(head: str) -> None:
    x, t = randn(1, 1, 4), torch.full((1, 1, 1), 0.5, dtype=F64)
    with pytest.raises(InputError, match="degraded signal"):
        HeadDenoiser(lambda *_: x, process("vp"), head)(x, t)


def test_unknown_head() -> None:
    with pytest.raises(InputError, match="resnoise"):
        HeadDenoiser(lambda *_: None, process("vp"), "noise")  # type: ignore[arg-type, return-value]
    with pytest.raises(InputError, match="resnoise"):
        target("noise", process("vp"), randn(1), randn(1), torch.ones(1, dtype=F64))


def test_noise_estimate_without_noise_is_zero() -> None:
    x, t = randn(2, 1, 3), torch.tensor([0.0, 1.0], dtype=F64).reshape(2, 1, 1)
    eps = noise_estimate(process("flow"), x, t, torch.zeros_like(x))
    assert eps[0].abs().max() == 0
    torch.testing.assert_close(eps[1], x[1])


def test_base_class_answers_nothing() -> None:
    with pytest.raises(TypeError, match="__call__"):
        Denoiser(process("vp"))(randn(1, 1), torch.ones(1, 1, dtype=F64))
