"""A prior that sees mirror images: nothing changes for one that treats them alike, and another's faults average out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.mirrored import Mirrored
from suite.noise import Noise
from suite.process import process

EDM = process("edm")


class Plain(Denoiser):
    """Half of x, and `fault` times a ramp along x that has nothing to do with the picture."""

    differentiable = True

    def __init__(self, fault: float = 0.0) -> None:
        super().__init__(EDM)
        self.fault = fault

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        ramp = torch.linspace(-1, 1, x.shape[-1]).expand_as(x)
        return 0.5 * x + self.fault * ramp + (0 if y is None else y)


def pictures(side: tuple[int, int] = (6, 6)) -> Tensor:
    return torch.randn(3, 2, *side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [(6, 6), (4, 7)])
def test_a_prior_without_directions_is_left_as_it_is(side: tuple[int, int]) -> None:
    x, t = pictures(side), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    anchor = pictures(side).flip(0)
    mirrored = Mirrored(Plain(), Noise.of(0, ["a"]).generators[0])
    for _ in range(6):
        torch.testing.assert_close(mirrored(x, t, anchor), Plain()(x, t, anchor))


def test_faults_of_direction_average_out() -> None:
    x, t = pictures(), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    mirrored = Mirrored(Plain(1.0), Noise.of(0, ["a"]).generators[0])
    mean = torch.stack([mirrored(x, t) for _ in range(400)]).mean(0)
    fault = float((Plain(1.0)(x, t) - 0.5 * x).square().mean().sqrt())
    assert float((mean - 0.5 * x).square().mean().sqrt()) < 0.15 * fault


def test_the_numbers_are_the_generators() -> None:
    x, t = pictures(), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    first, again = (Mirrored(Plain(1.0), Noise.of(0, ["a"]).generators[0]) for _ in range(2))
    said = [first(x, t) for _ in range(8)]
    assert all(torch.equal(one, again(x, t)) for one in said)
    assert len({float(one.flatten()[0]) for one in said}) > 1
    with pytest.raises(InputError, match="pictures"):
        first(torch.zeros(1, 1, 8), t)
