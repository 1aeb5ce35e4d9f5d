"""Maps that warn of what a prior may have made up: how its mind changed on the way, and where a classical method disagrees."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LIMIT = 3.0
"""Standard deviations from which on a disagreement counts."""

MAD = 1.4826
"""Standard deviation of normal numbers over their median absolute deviation."""

_KEPT = 0.75  # weight of the past in the running moments: they remember about four steps


class Wander:
    """How far the estimates of the signal still moved in the last steps: a `Callback` of a posterior method.

    The criterion for hallucinations of Aithal et al. (2024, mode interpolation): the variance of the estimates of `x0` along the
    end of the reverse trajectory, large where the prior goes from one explanation to another. Here with a running mean and
    variance that forget, `v <- 0.75 (v + 0.25 d^2)` with d the change against the mean, so that the number of steps need not
    be known.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.variance: Tensor | None = None

    def __call__(self, number: int, x: Tensor, estimate: Tensor) -> None:
        estimate = estimate.detach()
        if self.mean is None or self.variance is None:
            self.mean, self.variance = estimate.clone(), torch.zeros_like(estimate.real)
            return
        change = estimate - self.mean
        self.mean = self.mean + (1 - _KEPT) * change
        self.variance = _KEPT * (self.variance + (1 - _KEPT) * change.abs().square())

    @property
    def std(self) -> Tensor:
        """Root of the variance, in the units of the state.

        Raises:
            RuntimeError: it was never called.
        """
        if self.variance is None:
            raise RuntimeError("no estimate was seen")
        return self.variance.sqrt()


def disagreement(
    result: Tensor, reference: Tensor, sigma: Tensor | None = None, objects: Tensor | None = None
) -> Tensor:
    """How far a result lies from a classical reference, in standard deviations, `(B, C, *spatial)` and signed.

    The difference is averaged over 3 pixels a side (of two dimensions), so that noise of single pixels does not count.

    Args:
        result, reference: `(B, C, *spatial)`, real.
        sigma: standard deviation of the result (calibrated); None: the usual size of the difference itself inside the objects of
            each item (median), so that only what stands out counts.
        objects: bool, broadcastable; where that size is measured (default: everywhere).
    """
    difference = result - reference
    if difference.ndim == 4:
        difference = F.avg_pool2d(difference, 3, stride=1, padding=1, count_include_pad=False)
    if sigma is None:
        inside = torch.ones_like(difference) if objects is None else objects.expand_as(difference)
        counted = torch.where(inside.bool(), difference.abs(), torch.nan).flatten(1)
        usual = MAD * torch.nan_to_num(counted.nanmedian(1).values)
        sigma = usual.reshape(-1, *(1,) * (difference.ndim - 1))
    floor = 1e-6 * float(result.abs().amax().clamp_min(1e-30))
    return difference / sigma.clamp_min(floor)


def beyond(z: Tensor, objects: Tensor | None = None, limit: float = LIMIT) -> float:
    """Share of the objects' pixels where a disagreement exceeds the limit."""
    far = z.abs() > limit
    if objects is None:
        return float(far.double().mean())
    inside = objects.expand_as(far).bool()
    return float(far[inside].double().mean()) if bool(inside.any()) else 0.0
