"""One conditional network as predictor, bridge and two-stage restorer, against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from suite.errors import InputError
from suite.grid import time_grid
from suite.masking import MaskUNet
from suite.network import Preconditioned
from suite.noise import Noise
from suite.prior import Card, Prior, load_prior
from suite.process import ir_sde, ouve, sb_ve, ve
from suite.restoration import Conditioned, Plan, predict, restore
from suite.solver import DDIM, DPMpp2M, PredictorCorrector
from suite.training import NetworkConfig, NoiseLevels, Trainer, TrainingConfig, draw_times, residual_loss

# x0 ~ N(0, S^2), y = x0 + N(0, M^2): all of `E[x0 | z, y]` is linear and known.
S, M = 0.5, 0.3


class Linear(nn.Module):
    """The exact answer for white Gaussian data and a condition that is the signal in white noise."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, alpha: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        pinned = (alpha == 0) & (sigma == 0)
        information = torch.where(pinned, 0.0, alpha**2 / sigma**2)
        seen = torch.where(pinned, 0.0, alpha / sigma**2) * z
        mean: Tensor = (seen + condition / M**2) / (information + 1 / M**2 + 1 / S**2)
        return mean.to(z.dtype)


def exact_prior(process: str = "sb-ve") -> Prior:
    prior = object.__new__(Prior)
    card = card_of(1, {})
    prior.net, prior.card, prior.path, prior.sha256 = Linear(), card, None, ""
    prior.process = {"sb-ve": sb_ve, "ouve": ouve}[process]()
    return prior


def card_of(channels: int, network: dict[str, object]) -> Card:
    return Card(
        name="exact",
        domain="toy",
        description="",
        unit="1",
        scale=1,
        offset=0,
        value_range=(-5, 5),
        channels=channels,
        condition_channels=channels,
        architecture="suite.masking.MaskUNet",
        network=network,
        process="sb-ve",
        sigma_data=S,
        sigma_range=(0.01, 50),
        data=[],
        validation_data=[],
        licence="",
        training={},
        validation={},
    )


def pairs(count: int = 4000) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x0 = S * torch.randn(1, 1, count, generator=rng)
    return x0, x0 + M * torch.randn(x0.shape, generator=rng)


def test_predictor_is_the_mean_given_y() -> None:
    _, y = pairs()
    assert torch.allclose(predict(exact_prior(), y), y * S**2 / (S**2 + M**2), atol=1e-6)


@pytest.mark.parametrize("process", [sb_ve(), ouve(), ir_sde(lam=1.0)])
@pytest.mark.parametrize("two_stage", [False, True])
def test_draws_follow_the_posterior(process, two_stage: bool) -> None:  # type: ignore[no-untyped-def]
    """Anchored at y or at the prediction, a fine diffusion ends in `p(x0 | y)`."""
    _, y = pairs()
    grid = time_grid(process, 120, "quadratic")
    plan = Plan(process, DDIM(1.0), grid, two_stage)
    found = restore(exact_prior(), plan, y, Noise.of(0))
    mean, variance = y * S**2 / (S**2 + M**2), S**2 * M**2 / (S**2 + M**2)
    z = (found - mean) / math.sqrt(variance)
    late = (
        float(process.alpha(torch.ones((), dtype=torch.float64))) ** 2
    )  # a process that does not end at y starts a little off
    assert abs(float(z.mean())) < 0.05 + late
    assert abs(float(z.std()) - 1) < 0.05 + late


def test_evaluations_are_counted_right() -> None:
    process, calls = sb_ve(), []
    prior = exact_prior()
    prior.net.register_forward_hook(lambda *_: calls.append(1))
    y = pairs(8)[1]
    cases = [
        Plan(),
        Plan(process, DDIM(), time_grid(process, 4)),
        Plan(process, DPMpp2M(), time_grid(process, 3), two_stage=True),
        Plan(ouve(), PredictorCorrector(), time_grid(ouve(), 5)),
    ]
    for plan in cases:
        calls.clear()
        restore(prior, plan, y, Noise.of(0))
        assert len(calls) == plan.evaluations


def test_prediction_needs_a_bridge() -> None:
    with pytest.raises(InputError, match="sb-ve"):
        predict(exact_prior("ouve"), pairs(8)[1])


def test_anchor_and_condition_are_two_things() -> None:
    x0, y = pairs(16)
    process = ouve()
    t = torch.full((1, 1, 1), 0.4, dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    answers = [
        Conditioned(exact_prior(), process, y)(process.marginal(x0, t, eps, anchor), t, anchor)
        for anchor in (y, 0.3 * y, torch.ones_like(y))
    ]
    for other in answers[1:]:
        assert torch.allclose(answers[0], other, atol=1e-5)


# --- the network ------------------------------------------------------------------------------------------------------


def test_mask_network_is_two_gains() -> None:
    torch.manual_seed(0)
    net = MaskUNet(4, 2, S, channels=[4], blocks=1, dims=1, features=8)
    x = torch.randn(3, 4, 10)
    assert torch.allclose(net(x, torch.zeros(3)), 0.5 * x[:, 2:] / S, atol=1e-6)  # untrained: half of y
    nn.init.normal_(net.unet.tail.weight)
    z, y = (torch.complex(part[:, 0], part[:, 1]) for part in x.chunk(2, dim=1))
    turn = torch.polar(torch.tensor(1.0), torch.tensor(0.7))

    def answer(z: Tensor, y: Tensor) -> Tensor:
        out = net(torch.stack([z.real, z.imag, y.real, y.imag], dim=1), torch.zeros(3))
        return torch.complex(out[:, 0], out[:, 1])

    assert torch.allclose(answer(turn * z, turn * y), turn * answer(z, y), atol=1e-5)  # no phase is special
    alone = answer(0 * z, y) / y
    assert torch.allclose(alone.imag, torch.zeros(3, 10), atol=1e-5)
    assert bool(((alone.real >= 0) & (alone.real <= 1 / S)).all())
    with pytest.raises(InputError, match="mask"):
        MaskUNet(3, 2, channels=[4])


def test_the_end_of_a_bridge_is_the_limit() -> None:
    """`Preconditioned` at alpha = sigma = 0 is its limit for sigma/alpha -> infinity, with z = 0."""
    torch.manual_seed(0)
    backbone = MaskUNet(4, 2, channels=[4], blocks=1, dims=1, features=8)
    nn.init.normal_(backbone.unet.tail.weight)
    net = Preconditioned(backbone, 0.5, (0.01, 50.0))
    y, zero = torch.randn(2, 2, 16), torch.zeros(2, 2, 16)

    def at(alpha: float, sigma: float) -> Tensor:
        shape = (1, 1, 1)
        return net(zero, torch.full(shape, alpha), torch.full(shape, sigma), y)

    pinned = at(0.0, 0.0)
    assert bool(pinned.isfinite().all()) and torch.allclose(pinned, at(1e-7, 1e-3), atol=1e-5)


# --- its training -----------------------------------------------------------------------------------------------------


class Pairs:
    channels = condition_channels = 2

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x0 = S * torch.randn(size, 2, patch, generator=rng)
        return x0, x0 + M * torch.randn(x0.shape, generator=rng)

    def validation(self, patch: int) -> tuple[Tensor, Tensor]:
        return self.batch(64, patch, torch.Generator().manual_seed(9))


def config() -> TrainingConfig:
    return TrainingConfig(
        network=NetworkConfig(masking=True, channels=[8], blocks=1, dims=1, features=16),
        process="sb-ve",
        sigma_data=S,
        noise=NoiseLevels(mean=None, pinned=0.5, low=0.02, high=50.0),
        patch=16,
        batch=32,
        steps=60,
        learning_rate=5e-3,
        warmup=5,
        ema=0.9,
        mixed_precision=False,
        validate_every=60,
        validation_levels=[0.3],
    )


def test_training_learns_the_predictor(tmp_path: Path) -> None:
    """After a few steps the error at t = 1 is near `S M / sqrt(S^2 + M^2)`, and the file gives the network back."""
    trainer = Trainer(config(), Pairs(), tmp_path / "p.safetensors", torch.device("cpu"))
    trainer.run()
    errors = trainer.history[-1]["validation_rmse"]
    assert errors["y"] < 1.1 * S * M / math.hypot(S, M)
    assert errors["0.3"] < 1.15 / math.sqrt(1 / S**2 + 1 / M**2 + 1 / 0.3**2)
    prior = Prior(trainer.average, card_of(2, trainer.net.network.settings))  # type: ignore[arg-type]
    prior.save(tmp_path / "p.safetensors", half=False)
    y = Pairs().validation(16)[1]
    assert torch.equal(predict(load_prior(tmp_path / "p.safetensors"), y), predict(prior, y))


def test_a_share_of_times_is_pinned() -> None:
    rng = torch.Generator().manual_seed(0)
    times = draw_times(config(), sb_ve(), 4000, rng)
    assert abs(float((times == 1).double().mean()) - 0.5) < 0.03
    free = times[times < 1]
    assert abs(float(free.mean()) - 0.5) < 0.03


def test_the_loss_at_the_end_is_the_predictors() -> None:
    torch.manual_seed(0)
    backbone = MaskUNet(4, 2, channels=[4], blocks=1, dims=1, features=8)
    nn.init.normal_(backbone.unet.tail.weight)
    net = Preconditioned(backbone, S, (0.02, 50.0))
    x0, y = Pairs().batch(3, 16, torch.Generator().manual_seed(0))
    loss = residual_loss(net, sb_ve(), x0, y, torch.ones(3, dtype=torch.float64), torch.randn(x0.shape))
    guess = S * backbone(torch.cat([0 * y, y], dim=1), torch.full((3,), math.log(50.0) / 4))
    assert torch.allclose(loss, ((guess - x0) / S).square().flatten(1).mean(1), rtol=1e-4)


def test_unanchored_process_with_a_condition() -> None:
    """A plain diffusion given the condition ends in the same posterior."""
    _, y = pairs()
    process = ve(0.002, 10.0)
    plan = Plan(process, DDIM(1.0), time_grid(process, 120, "logsnr"))
    found = restore(exact_prior(), plan, y, Noise.of(0))
    z = (found - y * S**2 / (S**2 + M**2)) / (S * M / math.hypot(S, M))
    assert abs(float(z.mean())) < 0.05 and abs(float(z.std()) - 1) < 0.06
