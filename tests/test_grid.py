"""Time grids against the spacings of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.errors import InputError
from suite.gaussian import Gaussian
from suite.grid import GRIDS, time_grid
from suite.process import PROCESSES, process
from suite.solver import DDIM, sample

F64 = torch.float64


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("name", PROCESSES)
@settings(max_examples=15)
@given(steps=st.integers(1, 60), start=st.floats(0.3, 1.0), stop=st.sampled_from([0.0, 0.02, 0.2]))
def test_grids_run_from_start_to_stop(kind: str, name: str, steps: int, start: float, stop: float) -> None:
    grid = time_grid(process(name), steps, kind, start=start, stop=stop)
    assert grid.shape == (steps + 1,) and grid.dtype == F64
    assert float(grid[0]) == start and float(grid[-1]) == stop
    assert bool((grid.diff() < 0).all())


def test_grid_spacings() -> None:
    p = process("edm")
    torch.testing.assert_close(time_grid(p, 4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=F64))
    torch.testing.assert_close(time_grid(p, 4, "quadratic"), torch.tensor([16, 9, 4, 1, 0], dtype=F64) / 16)
    steps = 10  # Karras et al. 2022, eq. 5
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigma = torch.tensor([(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)], dtype=F64)
    torch.testing.assert_close(p.sigma(time_grid(p, steps, "karras"))[:-1], sigma, rtol=1e-6, atol=0)
    lam = process("vp").log_snr(time_grid(process("vp"), 8, "logsnr", start=0.9, stop=0.1))
    torch.testing.assert_close(lam.diff(), lam.diff().mean().expand(8))


def test_log_snr_is_clipped_at_both_ends() -> None:
    p = process("flow")
    lam = p.log_snr(time_grid(p, 10, "logsnr", log_snr_range=(-4.0, 5.0)))
    assert lam[0] == -math.inf
    torch.testing.assert_close(lam[1:-1], torch.linspace(-4, 5, 10, dtype=F64)[1:])


def test_bad_grids_are_refused() -> None:
    p = process("vp")
    with pytest.raises(InputError, match="logsnr"):
        time_grid(p, 10, "linear")
    with pytest.raises(InputError, match="at least one step"):
        time_grid(p, 0)
    with pytest.raises(InputError, match="smaller stop"):
        time_grid(p, 10, start=0.2, stop=0.5)
    with pytest.raises(InputError, match="already cleaner"):
        time_grid(p, 10, "logsnr", start=1e-9)
    law = Gaussian(torch.zeros(1, 3), torch.ones(1, 3))
    for grid, message in (
        (torch.tensor([1.0]), "at least two"),
        (torch.tensor([0.5, 0.7]), "renoise"),
        (torch.tensor([1.5, 0.7]), "renoise"),
        (torch.tensor([0.5, 0.5]), "differ"),
        (torch.tensor([float("nan"), 0.5]), "renoise"),
    ):
        with pytest.raises(InputError, match=message):
            sample(law.denoiser(p), DDIM(), grid, torch.zeros(1, 1, 3))


def test_times_that_do_not_fit_the_state() -> None:
    law = Gaussian(torch.zeros(1, 3), torch.ones(1, 3))
    with pytest.raises(InputError, match="broadcast"):
        sample(law.denoiser(process("vp")), DDIM(), torch.tensor([[0.9, 0.8], [0.5, 0.4]]), torch.zeros(1, 1, 3))
