"""Half-quadratic splitting against its recursion written out, and the levels it runs through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.posterior.dds import DDS
from suite.posterior.splitting import falling_levels, split
from suite.process import process


class Affine(Denoiser):
    """`x0 = gain (x_t - beta y) / alpha + offset`, whatever the level."""

    def __init__(self, name: str, gain: Tensor, offset: float) -> None:
        super().__init__(process(name))
        self.gain, self.offset = gain, offset

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        alpha = self.process.alpha(t).to(x.dtype)
        return self.gain * self.process.shift(x, t, y) / alpha + self.offset


def test_levels_fall_evenly_in_their_logarithm_for_each_item() -> None:
    like = torch.zeros(3, 1, 4, 4)
    levels = falling_levels(0.4, torch.tensor([0.1, 0.025, 0.8]), 5, like)
    assert levels.shape == (5, 3, 1, 1, 1)
    for item, last in enumerate((0.1, 0.025, 0.4)):  # never up
        np.testing.assert_allclose(levels[:, item].flatten(), np.geomspace(0.4, last, 5), rtol=1e-6)


def test_a_single_step_takes_the_last_level() -> None:
    assert falling_levels(0.4, 0.1, 1, torch.zeros(1, 1, 2)).flatten().tolist() == pytest.approx([0.1])


@pytest.mark.parametrize("name", ["edm", "vp", "flow", "ir-sde"])
@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_the_recursion_is_the_one_written_out(name: str, momentum: float) -> None:
    gain = torch.tensor([0.3, 0.9, 0.99], dtype=torch.float64).reshape(1, 1, 3)
    y = torch.full_like(gain, 2.0) if name == "ir-sde" else None
    levels = falling_levels(0.5, 0.1, 12, gain)
    out = split(Affine(name, gain, 0.2), levels, torch.ones_like(gain), momentum=momentum, y=y)
    x, last = np.ones(3), np.ones(3)
    for _ in range(12):
        x, last = gain.numpy().ravel() * (x + momentum * (x - last)) + 0.2, x
    np.testing.assert_allclose(out.numpy().ravel(), x, rtol=1e-6)


def test_momentum_brings_slow_directions_nearer_to_where_they_end() -> None:
    gain = torch.full((1, 1, 1), 0.97, dtype=torch.float64)
    levels = falling_levels(0.5, 0.1, 20, gain)
    end = 0.2 / (1 - 0.97)
    plain, fast = (
        float(split(Affine("edm", gain, 0.2), levels, torch.zeros_like(gain), momentum=m)) for m in (0.0, 0.75)
    )
    assert abs(fast - end) < 0.4 * abs(plain - end)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"momentum": 0.5}, "renoise=False"),
        ({"momentum": 1.0, "renoise": False}, r"\[0, 1\)"),
        ({"finest": torch.tensor([0.1, 0.2])}, "renoise=False"),
        ({"strength": torch.tensor([1.0, 0.0])}, "must be positive"),
    ],
)
def test_what_it_cannot_serve_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DDS(**options)
