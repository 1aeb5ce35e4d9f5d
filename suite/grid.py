"""Time grids: where between noisy and clean a solver stops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suite.errors import InputError
from suite.process import Process

CLEANEST = -math.log(0.002)  # log-SNR at the smallest sigma/alpha of Karras et al. 2022
GRIDS = ("uniform", "quadratic", "karras", "logsnr")


def time_grid(
    process: Process,
    steps: int,
    kind: str = "uniform",
    *,
    start: float = 1.0,
    stop: float = 0.0,
    rho: float = 7.0,
    log_snr_range: tuple[float, float] = (-5.0, CLEANEST),
) -> Tensor:
    """`steps + 1` decreasing times from `start` to `stop`, float64.

    The time 0 stands for the clean state (alpha, beta, sigma) = (1, 0, 0), also where sigma(0) > 0: the step that
    arrives there delivers the denoised mean.

        uniform    equal steps in t (for flow matching)
        quadratic  equal steps in sqrt(t): dense near the clean end (Song et al. 2021, DDIM, appendix D.2)
        karras     equal steps in (sigma/alpha)^(1/rho) (Karras et al. 2022, eq. 5)
        logsnr     equal steps in lambda = log(alpha/sigma) (Lu et al. 2022): the usual choice for diffusions

    The last two need finite ends, so lambda is clipped to `log_snr_range`: -5 is the noisy end used by Lu et al. and
    MRS, 6.2 the clean end (sigma/alpha = 0.002) of Karras et al. The first time is `start` itself even where
    alpha(start) = 0, and with `stop = 0` the last step goes from the clean end of the range to 0.

    Raises:
        InputError: unknown kind, no steps, ends out of order, or a start already beyond the clean end of the range.
    """
    if kind not in GRIDS:
        raise InputError(f"there is no time grid named {kind!r}; choose one of {', '.join(GRIDS)}")
    if steps < 1:
        raise InputError(f"a time grid needs at least one step, not {steps}")
    if not 0 <= stop < start <= 1:
        raise InputError(f"a time grid runs from start to a smaller stop within [0, 1], not from {start} to {stop}")
    if kind == "uniform":
        return _spaced(start, stop, steps + 1)
    if kind == "quadratic":
        times = _spaced(start**0.5, stop**0.5, steps + 1) ** 2
        times[0], times[-1] = start, stop
        return times
    inner = steps if stop > 0 else steps - 1  # intervals before the jump to the clean state
    if inner == 0:
        return torch.tensor([start, 0.0], dtype=torch.float64)
    low, high = log_snr_range
    first = process.log_snr(torch.tensor(start, dtype=torch.float64)).clamp_min(low)
    last = process.log_snr(torch.tensor(stop, dtype=torch.float64))
    last = last if stop > 0 else last.clamp_max(high)
    if not bool(first < last):
        raise InputError(
            f"at start = {start} {process.name} is already cleaner than log-SNR {high:.3g}; raise the range or start"
        )
    if kind == "logsnr":
        lam = _spaced(float(first), float(last), inner + 1)
    else:
        lam = -rho * torch.log(_spaced(float(torch.exp(-first / rho)), float(torch.exp(-last / rho)), inner + 1))
    times = process.time_of_log_snr(lam)
    times[0] = start
    if stop > 0:
        times[-1] = stop
        return times
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def _spaced(first: float, last: float, count: int) -> Tensor:
    out = torch.linspace(first, last, count, dtype=torch.float64)
    out[0], out[-1] = first, last
    return out
