"""The trainer: reaches known optima, resumes bit by bit, and keeps subjects apart."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor

from suite.errors import InputError
from suite.patches import PatchSource, Subject
from suite.process import process
from suite.training import NetworkConfig, NoiseLevels, Trainer, TrainingConfig, assign_noise, draw_times

CPU = torch.device("cpu")
S = 0.5


class Flat:
    """Images of one random value each, N(0, 0.25): the best denoiser averages. With `noisy`, a degraded partner too."""

    channels = 1

    def __init__(self, dims: int, noisy: float | None = None) -> None:
        self.dims, self.noisy = dims, noisy
        self.condition_channels = int(noisy is not None)

    def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        x = S * torch.randn(size, 1, *(1,) * self.dims, generator=rng).expand(size, 1, *(patch,) * self.dims)
        return x, None if self.noisy is None else x + self.noisy * torch.randn(x.shape, generator=rng)

    def validation(self, patch: int) -> tuple[Tensor, Tensor | None]:
        return self.batch(512, patch, torch.Generator().manual_seed(12345))


def small(dims: int = 1, **changes: Any) -> TrainingConfig:
    network = NetworkConfig(channels=[8, 8], blocks=1, dims=dims, features=8)
    base = {"patch": 4, "batch": 4, "steps": 8, "validate_every": 4, "warmup": 2, "mixed_precision": False}
    return TrainingConfig(network=network, **base | {"validation_levels": [0.1, 1.0]} | changes)


def weights(trainer: Trainer) -> list[Tensor]:
    nets = (trainer.net, trainer.average)
    return [value.clone() for net in nets for value in net.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- what it learns --------------------------------------------------------------------------------------------------


def test_reaches_the_best_possible_denoiser_of_a_gaussian(tmp_path: Path) -> None:
    levels = [0.1, 0.5, 2.0]
    config = TrainingConfig(
        network=NetworkConfig(channels=[16, 16], blocks=1, dims=1, features=16),
        noise=NoiseLevels(mean=-0.7, std=1.2), sigma_data=S, patch=8, batch=64, steps=300, learning_rate=6e-3,
        warmup=20, cooldown=0.5, ema=0.98, mixed_precision=False, validate_every=300, validation_levels=levels,
    )  # fmt: skip
    trainer = Trainer(config, Flat(1), tmp_path / "flat.safetensors", CPU)
    trainer.run()
    for level in levels:
        best = math.sqrt(S**2 * level**2 / 8 / (S**2 + level**2 / 8))
        pixelwise = math.sqrt(S**2 * level**2 / (S**2 + level**2))
        reached = trainer.history[-1]["validation_rmse"][f"{level:g}"]
        assert 0.92 * best < reached < 1.06 * best  # 512 items: their own error is known to 3 %
        assert reached < 0.9 * pixelwise


def test_a_condition_is_used_under_an_anchored_process(tmp_path: Path) -> None:
    config = small(
        process="ouve", noise=NoiseLevels(mean=None), sigma_data=S, steps=300, batch=32, learning_rate=4e-3,
        cooldown=0.5, ema=0.98, validate_every=300, validation_levels=[1.0],
    )  # fmt: skip
    trainer = Trainer(config, Flat(1, noisy=0.2), tmp_path / "conditional.safetensors", CPU)
    trainer.run()
    alone = math.sqrt(S**2 / 4 / (S**2 + 1 / 4))  # four pixels at noise 1, without the partner
    both = math.sqrt(1 / (1 / S**2 + 4 + 4 / 0.2**2))
    assert both < trainer.history[-1]["validation_rmse"]["1"] < 0.5 * alone


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_dimension_trains_and_validates(dims: int, tmp_path: Path) -> None:
    trainer = Trainer(small(dims, steps=4, mixed_precision=True), Flat(dims), tmp_path / "any.safetensors", CPU)
    trainer.run()
    assert trainer.history[-1]["step"] == 4
    assert all(math.isfinite(v) for v in trainer.history[-1]["validation_rmse"].values())


# --- the same run, whatever happens to it ----------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2])
def test_resumed_run_equals_an_undisturbed_one(dims: int, tmp_path: Path) -> None:
    whole = Trainer(small(dims), Flat(dims), tmp_path / "whole.safetensors", CPU)
    whole.run()
    cut = Trainer(small(dims), Flat(dims), tmp_path / "cut.safetensors", CPU)
    cut.run(minutes=0.0)
    assert cut.step == 1
    torch.manual_seed(99)
    resumed = Trainer(small(dims), Flat(dims), tmp_path / "cut.safetensors", CPU)
    resumed.resume()
    assert same(weights(resumed), weights(cut))
    strides = [(p.stride(), resumed.optimizer.state[p]["exp_avg"].stride()) for p in resumed.net.parameters()]
    assert all(a == b for a, b in strides)
    resumed.run()
    assert same(weights(whole), weights(resumed))
    assert [row["validation_rmse"] for row in whole.history] == [row["validation_rmse"] for row in resumed.history[1:]]
    assert not list(tmp_path.glob(".*"))


def test_seed_decides_and_zero_counts(tmp_path: Path) -> None:
    def run(seed: int) -> list[Tensor]:
        trainer = Trainer(small(seed=seed, steps=2), Flat(1), tmp_path / "seed.safetensors", CPU)
        trainer.run()
        return weights(trainer)

    assert same(run(0), run(0))
    assert not same(run(0), run(1))


def test_steps_may_be_added_but_nothing_else_changed(tmp_path: Path) -> None:
    output = tmp_path / "prior.safetensors"
    with pytest.raises(InputError, match="nothing to resume"):
        Trainer(small(), Flat(1), output, CPU).resume()
    Trainer(small(), Flat(1), output, CPU).run()
    longer = Trainer(small(steps=10), Flat(1), output, CPU)
    longer.resume()
    longer.run()
    assert longer.step == 10
    with pytest.raises(InputError, match="another configuration"):
        Trainer(small(learning_rate=1e-3), Flat(1), output, CPU).resume()
    whole = longer.checkpoint.read_bytes()
    for damaged in (whole[:-9], whole[:100], b"", b"\x80\x04N."):
        longer.checkpoint.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged"):
            Trainer(small(), Flat(1), output, CPU).resume()


def test_average_is_the_exponential_one(tmp_path: Path) -> None:
    trainer = Trainer(small(ema=0.5), Flat(1), tmp_path / "ema.safetensors", CPU)
    expected = [p.detach().clone() for p in trainer.net.parameters()]
    for step in range(8):
        trainer.train_step()
        decay = min(0.5, (1 + step) / (10 + step))
        now = [p.detach() for p in trainer.net.parameters()]
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, now, strict=True)]
    assert all(torch.allclose(a, e, atol=1e-6) for a, e in zip(trainer.average.parameters(), expected, strict=True))


def test_learning_rate_rises_stays_and_falls(tmp_path: Path) -> None:
    trainer = Trainer(small(steps=100, warmup=10, cooldown=0.2), Flat(1), tmp_path / "rate.safetensors", CPU)
    rates = []
    for trainer.step in range(100):
        rates.append(trainer.learning_rate() / 5e-4)
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[10:80] == pytest.approx([1.0] * 70)
    assert rates[-2:] == pytest.approx([0.1, 0.05])
    trainer = Trainer(small(warmup=0, cooldown=0.0), Flat(1), tmp_path / "rate.safetensors", CPU)
    assert trainer.learning_rate() == 5e-4


def test_bad_data_stop_the_run_and_spare_the_checkpoint(tmp_path: Path) -> None:
    class Breaking(Flat):
        def batch(self, size: int, patch: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
            x, y = super().batch(size, patch, rng)
            return (x if trainer.step < 5 or size > 4 else x * math.nan), y

    trainer = Trainer(small(), Breaking(1), tmp_path / "nan.safetensors", CPU)
    with pytest.raises(InputError, match="the training loss is nan at step 6"):
        trainer.run()
    again = Trainer(small(), Flat(1), tmp_path / "nan.safetensors", CPU)
    again.resume()
    assert again.step == 4
    assert all(w.isfinite().all() for w in weights(again))


# --- its parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["edm", "vp", "flow", "ve"])
def test_times_give_the_noise_levels_asked_for(name: str) -> None:
    proc = process(name)
    config = TrainingConfig(noise=NoiseLevels(mean=-1.0, std=0.5, low=0.05, high=2.0))
    ratio = -proc.log_snr(draw_times(config, proc, 20000, torch.Generator().manual_seed(0)))
    assert ratio.min() >= math.log(0.05) - 1e-9
    assert ratio.max() <= math.log(2.0) + 1e-9
    assert float(ratio.mean()) == pytest.approx(-1.0, abs=0.02)
    assert float(ratio.std()) == pytest.approx(0.5, abs=0.02)
    uniform = TrainingConfig(noise=NoiseLevels(mean=None))
    t = draw_times(uniform, proc, 20000, torch.Generator().manual_seed(0))
    assert float(t.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(t.var()) == pytest.approx(1 / 12, abs=0.002)


def test_immiscible_noise_is_the_cheapest_permutation() -> None:
    rng = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(5, 1, 3, 3, generator=rng) for _ in range(2))
    cheapest = min(
        itertools.permutations(range(5)), key=lambda p: sum(float((x0[i] - eps[j]).norm()) for i, j in enumerate(p))
    )
    assert torch.equal(assign_noise(x0, eps), eps[list(cheapest)])
    assert cheapest != tuple(range(5))


def test_immiscible_training_runs_and_differs(tmp_path: Path) -> None:
    plain, other = (Trainer(small(immiscible=i), Flat(1), tmp_path / "i.safetensors", CPU) for i in (False, True))
    plain.train_step()
    other.train_step()
    assert not same(weights(plain), weights(other))


@pytest.mark.parametrize(
    "wrong",
    [{"stpes": 3}, {"batch": 0}, {"ema": 1.0}, {"sigma_data": 0.0}, {"validation_levels": [0.0]}, {"warmup": -1}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        TrainingConfig(**wrong)


# --- patches ---------------------------------------------------------------------------------------------------------


def subject(name: str, value: float, *size: int, weight: float = 1.0) -> Subject:
    return Subject(name, torch.full((3, 1, *size), value), weight)


def test_subjects_are_on_one_side_of_the_split() -> None:
    train = [subject("a", 1.0, 32, 32), subject("b", 2.0, 20, 48, weight=3.0)]
    source = PatchSource(train, [subject("c", 5.0, 32, 32), subject("d", 6.0, 16, 16)], validation_patches=6)
    values = source.batch(4000, 2, torch.Generator().manual_seed(0))[0].mean((1, 2, 3))
    assert set(values.round(decimals=3).tolist()) == {1.0, 2.0}
    assert float((values > 1.5).float().mean()) == pytest.approx(0.75, abs=0.03)
    held_out = source.validation(16)[0]
    assert sorted(held_out.mean((1, 2, 3)).round(decimals=3).tolist()) == [5.0] * 3 + [6.0] * 3
    assert torch.equal(held_out, source.validation(16)[0])


def test_splits_that_leak_or_are_empty_are_refused() -> None:
    a, b = subject("a", 1.0, 8, 8), subject("b", 2.0, 8, 8)
    with pytest.raises(InputError, match="the subject a is both trained on and validated with"):
        PatchSource([a, b], [subject("a", 3.0, 8, 8)])
    for train, held_out in (([], [a]), ([a], [])):
        with pytest.raises(InputError, match="at least one subject"):
            PatchSource(train, held_out)
    for images in (torch.zeros(0, 1, 8, 8), torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8)):
        with pytest.raises(InputError, match=r"the images of c have the shape"):
            PatchSource([a, Subject("c", images)], [b])


def test_patches_are_turned_but_never_stretched() -> None:
    ramp = torch.arange(12.0).repeat(40, 1)  # narrower than the patch: enlarged by 16/12 in both directions
    source = PatchSource([Subject("ramp", ramp[None, None])], [subject("v", 0.0, 8, 8)], zoom=1.0)
    patches = source.batch(64, 16, torch.Generator().manual_seed(0))[0][:, 0]
    inner = patches[:, 4:-4, 4:-4]
    along, across = inner.diff(dim=2).mean((1, 2)), inner.diff(dim=1).mean((1, 2))
    slopes = torch.stack([along, across], 1)
    assert torch.allclose(slopes.abs().amax(1), torch.full((64,), 12 / 16), atol=0.02)
    assert torch.allclose(slopes.abs().amin(1), torch.zeros(64), atol=1e-4)
    assert {(round(float(a)), round(float(b))) for a, b in slopes} == {(1, 0), (-1, 0), (0, 1), (0, -1)}


def test_all_eight_orientations_are_seen() -> None:
    picture = torch.arange(9.0).reshape(1, 1, 3, 3)
    source = PatchSource([Subject("p", picture)], [subject("v", 0.0, 8, 8)], zoom=1.0)
    seen = {tuple(p.flatten().tolist()) for p in source.batch(200, 3, torch.Generator().manual_seed(0))[0]}
    grid = picture[0, 0]
    assert seen == {tuple(g.rot90(k).flatten().tolist()) for g in (grid, grid.T) for k in range(4)}


def test_patches_zoom_both_ways_and_avoid_the_background() -> None:
    ramp = torch.arange(64.0).repeat(64, 1)
    source = PatchSource([Subject("ramp", ramp[None, None])], [subject("v", 0.0, 8, 8)], zoom=2.0)
    patches = source.batch(200, 16, torch.Generator().manual_seed(0))[0][:, 0]
    slope = torch.maximum(patches.diff(dim=1).abs().mean((1, 2)), patches.diff(dim=2).abs().mean((1, 2)))
    assert 0.45 < slope.min() < 0.6
    assert 1.7 < slope.max() < 2.05
    assert float(slope.log().mean()) == pytest.approx(0.0, abs=0.1)
    half = torch.zeros(1, 1, 8, 64)
    half[..., 32:] = 1.0
    plain, choosy = (
        PatchSource([Subject("half", half)], [subject("v", 0.0, 8, 8)], zoom=1.0, background=background)
        .batch(400, 8, torch.Generator().manual_seed(0))[0].mean((1, 2, 3))
        for background in (-1.0, 0.1)
    )  # fmt: skip
    assert float((plain < 0.1).float().mean()) == pytest.approx(0.45, abs=0.08)
    assert float((choosy < 0.1).float().mean()) == pytest.approx(0.45**3, abs=0.05)


def test_one_generator_one_batch() -> None:
    torch.manual_seed(0)
    source = PatchSource([Subject("n", torch.randn(2, 1, 24, 24))], [subject("v", 0.0, 8, 8)])
    first, again, other = (source.batch(5, 8, torch.Generator().manual_seed(s))[0] for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
