"""Every published restoration diffusion by name: trains, restores a closed-form Gaussian pair, and is sampled as it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_restoration import M, S, card_of, exact_prior
from torch import Tensor

from suite.config import load_config
from suite.errors import InputError
from suite.families import FAMILIES, family
from suite.grid import time_grid
from suite.network import Preconditioned
from suite.noise import Noise
from suite.prior import Prior, load_prior
from suite.process import process
from suite.restoration import FixedStart, Plan, Predicted, best_start, plan, restore
from suite.solver import DDIM
from suite.training import NetworkConfig, Trainer, TrainingConfig

LATE = 200  # evaluations at which a first-order sampler is nearly exact


def pairs(count: int = 6000) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x0 = S * torch.randn(1, 1, count, generator=rng)
    return x0, x0 + M * torch.randn(x0.shape, generator=rng)


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_denoiser_restores_the_gaussian_pair(name: str) -> None:
    """Sampled finely as its authors do, every family draws from `p(x0 | y)`, but for what its start leaves; and the last
    evaluation, at some sigma/alpha, answers with a mean, so that the spread still left there is lost."""
    _, y = pairs()
    how = plan(name, LATE)
    assert how.process is not None and how.grid is not None
    found = restore(exact_prior(), how, y, Noise.of(0))
    mean, std = y * S**2 / (S**2 + M**2), S * M / math.hypot(S, M)
    z = (found - mean) / std
    one = torch.ones((), dtype=torch.float64)
    late = float(how.process.alpha(one)) / float(how.process.sigma(one)) if name not in ("sb-ve", "interpolant") else 0
    assert abs(float(z.mean())) < 0.05 + late
    last = math.exp(-float(how.process.log_snr(how.grid[-2])))
    assert abs(float(z.std()) - std / math.hypot(std, last)) < 0.05 + 0.5 * late


# --- training by name -------------------------------------------------------------------------------------------------


class Smooth:
    """Pairs of one value each item, and the same in noise, in any number of dimensions; complex: as two channels."""

    def __init__(self, dims: int, complex_: bool = False) -> None:
        self.dims, self.complex = dims, complex_
        self.channels = self.condition_channels = 1 + complex_

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = (size, 1, *(patch,) * self.dims)
        kind = torch.complex64 if self.complex else torch.float32
        x = S * torch.randn(size, 1, *(1,) * self.dims, generator=rng, dtype=kind).expand(shape)
        y = x + M * torch.randn(shape, generator=rng, dtype=kind)
        return channels(x), channels(y)

    def validation(self, patch: int) -> tuple[Tensor, Tensor]:
        return self.batch(16, patch, torch.Generator().manual_seed(5))


def channels(x: Tensor) -> Tensor:
    return torch.cat([x.real, x.imag], dim=1) if x.is_complex() else x.contiguous()


def small(name: str, dims: int, **changes: Any) -> TrainingConfig:
    network = NetworkConfig(channels=[8], blocks=1, dims=dims, features=8)
    base = {"patch": 4, "batch": 32, "steps": 40, "learning_rate": 5e-3, "warmup": 1, "mixed_precision": False}
    return TrainingConfig(family=name, network=network, validate_every=40, validation_levels=[0.5], **base | changes)


def trained(
    name: str, dims: int, complex_: bool, tmp_path: Path, steps: int = 40
) -> tuple[Trainer, list[float], Prior]:
    trainer = Trainer(
        small(name, dims, steps=steps), Smooth(dims, complex_), tmp_path / "p.safetensors", torch.device("cpu")
    )
    losses = [trainer.train_step() for _ in range(steps)]
    card = card_of(1 + complex_, trainer.net.network.settings).model_copy(
        update=trainer.card_fields("") | {"architecture": "suite.network.UNet"}
    )
    return trainer, losses, Prior(trainer.average, card)


@pytest.mark.parametrize(
    ("dims", "complex_"), [(1, False), (2, False), (3, False), (2, True)], ids=["1d", "2d", "3d", "complex"]
)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mrs"])  # mrs samples with ir-sde's network
def test_trains_and_samples_by_name(name: str, dims: int, complex_: bool, tmp_path: Path) -> None:
    trainer, losses, prior = trained(name, dims, complex_, tmp_path)
    assert trainer.process.name == FAMILIES[name].process and trainer.net.head == FAMILIES[name].head
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert math.isfinite(trainer.validate()["0.5"])
    x0, y = Smooth(dims, complex_).validation(6)
    prior.save(tmp_path / "q.safetensors", half=False)
    how = plan(name, 4, proc=trainer.process)
    found = restore(load_prior(tmp_path / "q.safetensors"), how, y, Noise.of(0), precision="float32")
    assert found.shape == x0.shape and bool(found.isfinite().all())
    assert torch.equal(found, restore(prior, how, y, Noise.of(0), precision="float32"))


def test_two_heads_are_saved_and_both_used(tmp_path: Path) -> None:
    _, _, prior = trained("rddm-two", 1, False, tmp_path, steps=5)
    _, y = Smooth(1).validation(8)
    denoiser, t = prior.denoiser(precision="float32"), torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    mean, eps = denoiser.predict(y, t, y)
    out = prior.net.output(denoiser.process.shift(y, t, y), denoiser.process.alpha(t), denoiser.process.sigma(t), y)
    assert torch.allclose(mean, y - out[:, :1], atol=1e-6) and torch.equal(eps, out[:, 1:])
    assert torch.equal(mean, denoiser(y, t, y))


def test_a_file_names_a_family_and_may_differ_from_it(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("family: resshift\nprocess_parameters: {kappa: 1.0}\n")
    config = load_config(TrainingConfig, tmp_path / "c.yaml")
    assert (config.process, config.head, config.loss, config.noise.mean) == ("resshift", "x0", "l2", None)
    assert config.process_parameters == {"kappa": 1.0}
    assert TrainingConfig.model_validate(config.model_dump()) == config
    (tmp_path / "c.yaml").write_text("family: rdm\n")
    with pytest.raises(InputError, match=r"no restoration family named 'rdm'.*rddm"):
        load_config(TrainingConfig, tmp_path / "c.yaml")
    for name in ("rddm", "resfusion", "rddm-two"):
        with pytest.raises(InputError, match="trained on pairs"):
            source = Smooth(1)
            source.condition_channels = 0
            Trainer(small(name, 1), source, tmp_path / "x.safetensors", torch.device("cpu"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plan_keeps_to_its_evaluations(name: str) -> None:
    for most in (1, 2, 5, 30):
        assert plan(name, most).evaluations <= most
    assert plan(name).evaluations in (FAMILIES[name].evaluations, FAMILIES[name].evaluations - 1)
    with pytest.raises(InputError, match="at least 2"):
        plan(name, 1, two_stage=True)


# --- two stages, and a start found beforehand -------------------------------------------------------------------------


def test_any_predictor_can_be_the_first_stage() -> None:
    _, y = pairs()
    assert torch.equal(
        restore(exact_prior("ouve"), Plan(two_stage=True, predictor=lambda y: 0.3 * y), y, Noise.of(0)), 0.3 * y
    )
    how = plan("rddm", LATE, two_stage=True, predictor=lambda y: 0.3 * y)
    found = restore(exact_prior("ouve"), how, y, Noise.of(0))
    z = (found - y * S**2 / (S**2 + M**2)) / (S * M / math.hypot(S, M))
    assert abs(float(z.mean())) < 0.05 and abs(float(z.std()) - 1) < 0.06
    assert how.evaluations == LATE  # the predictor's are its own


def test_the_second_stage_may_see_the_prediction(tmp_path: Path) -> None:
    source = Predicted(Smooth(1), lambda y: y.mean(-1, keepdim=True).expand_as(y))
    x0, y = source.batch(3, 4, torch.Generator().manual_seed(0))
    assert source.condition_channels == 2 and torch.equal(y[:, 1:], y[:, :1].mean(-1, keepdim=True).expand_as(x0))
    trainer = Trainer(small("sb-ve", 1), source, tmp_path / "p.safetensors", torch.device("cpu"))
    trainer.train_step()
    card = card_of(1, trainer.net.network.settings).model_copy(
        update={**trainer.card_fields(""), "condition_channels": 2}
    )
    prior, seen = Prior(trainer.average, card), []
    prior.net.register_forward_hook(lambda module, given, out: seen.append(given[3]))
    clean, noisy = Smooth(1).validation(4)
    how = plan("sb-ve", 2, two_stage=True, predictor=source.predictor)
    assert restore(prior, how, noisy, Noise.of(0)).shape == clean.shape
    assert len(seen) == 2 and torch.equal(seen[0], torch.cat([noisy, source.predictor(noisy)], 1))


@pytest.mark.parametrize("name", ["rddm", "sb-ve", "mrs"])
def test_a_fixed_start_needs_no_seed(name: str) -> None:
    x0, y = (v.reshape(6, 1, 1000) for v in pairs())
    how = plan(name, 6)

    def run(patch: Tensor, y: Tensor = y, seed: int = 0) -> Tensor:
        return restore(exact_prior(), replace(how, start=patch), y, Noise.of(seed))

    best = best_start(run, x0, (1, 10))
    assert torch.equal(run(best), run(best, seed=1))
    assert torch.allclose(run(best)[2:3, :, :500], run(best, y[2:3, :, :500]), atol=1e-6)  # any size, any company
    errors = [float((run(best_start(run, x0, (1, 10), 1, seed)) - x0).square().mean()) for seed in range(4)]
    fresh = float((restore(exact_prior(), how, y, Noise.of(0)) - x0).square().mean())
    assert float((run(best) - x0).square().mean()) < min(fresh, *errors[1:])


def test_a_fixed_start_is_tiled_then_gives_way() -> None:
    noise, like = FixedStart(torch.arange(6.0).reshape(1, 2, 3), Noise.of(0)), torch.zeros(2, 2, 3, 4)
    first = noise.normal(like)
    assert torch.equal(first[1, 1, 2], torch.tensor([0.0, 1.0, 2.0, 0.0]))
    assert torch.equal(noise.normal(like), Noise.of(0).normal(like))


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["eps", "x0", "v", "residual", "resnoise"])
def test_a_network_that_says_its_target_gives_the_signal(head: str) -> None:
    from suite.denoiser import target

    p, rng = process("ouve"), torch.Generator().manual_seed(0)
    x0, eps, y = (torch.randn(3, 1, 4, generator=rng) for _ in range(3))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64).reshape(3, 1, 1)

    class Says(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return target(head, p, x0, eps, t, y)

    net = Preconditioned(Says(), S, head=head)
    z = p.shift(p.marginal(x0, t, eps, y), t, y)
    torch.testing.assert_close(net(z, p.alpha(t), p.sigma(t), y), x0, rtol=1e-4, atol=1e-4)


def test_a_noise_head_is_refused_where_it_says_nothing(tmp_path: Path) -> None:
    trainer = Trainer(
        small("ir-sde", 1, process="rddm", process_parameters={}), Smooth(1), tmp_path / "p", torch.device("cpu")
    )
    trainer.train_step()
    card = card_of(1, trainer.net.network.settings).model_copy(update=trainer.card_fields(""))
    prior, y = Prior(trainer.average, card), torch.zeros(1, 1, 4)
    grid = time_grid(trainer.process, 3)
    with pytest.raises(InputError, match="eps head"):
        restore(prior, Plan(trainer.process, DDIM(), grid), y, Noise.of(0))


def test_unknown_family() -> None:
    with pytest.raises(InputError, match="resfusion"):
        family("irsde")
