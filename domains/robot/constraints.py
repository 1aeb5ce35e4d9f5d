"""What a chunk shall agree with, as a measurement of it: the suite's PiGDM then samples the chunk under that condition.

Any network of the domain serves, whatever its head. Real-time chunking (Black et al. 2025, RTC) is the case in which the
measured values are those of the previous chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.linalg import TensorMap
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import Identity
from suite.posterior.pigdm import PiGDM

FROZEN = 0.01  # standard deviation of actions that are executed anyway, in units of the data's


@dataclass(frozen=True)
class Constraint:
    """Actions that are known to some accuracy, in network units.

    Attributes:
        values: `(B, A, H)`.
        std: standard deviation, the same shape or broadcastable to it; infinite where an action is free.
        rate: largest change from one action to the next, `(A,)`, which the chunk shall keep too; None: any.
    """

    values: Tensor
    std: Tensor
    rate: Tensor | None = None

    def of(self, items: Tensor | slice) -> Constraint:
        """That of some items of the batch."""
        return replace(self, values=self.values[items], std=self.std.expand_as(self.values)[items])

    def guide(self, denoiser: Denoiser, data_std: float, noise: Noise) -> Denoiser:
        """The denoiser of chunks that agree with the values.

        Raises:
            InputError: the network's experts are cached.
        """
        if not denoiser.differentiable:
            raise InputError(
                "goals and real-time chunking differentiate through the network, and its experts are cached; set cache to "
                "false"
            )
        if self.rate is not None:
            return PiGDM(iterations=12, tolerance=1e-2, data_std=data_std).guide(
                denoiser, self._limited(data_std), noise
            )
        weight = self.std.expand_as(self.values) ** -2

        def inverse(precision: Tensor) -> TensorMap:  # the proximal step is diagonal: one iteration solves it
            return lambda x: x / (weight + precision)

        measurement = Measurement(Identity(), self.values, self.std.expand_as(self.values), preconditioner=inverse)
        return PiGDM(iterations=2, tolerance=1e-9, data_std=data_std).guide(denoiser, measurement, noise)

    def _limited(self, data_std: float) -> Measurement:
        """The values, and after them by how much each change exceeds the rate: measured as zero."""
        assert self.rate is not None
        most = self.rate[:, None]

        def seen(x: Tensor) -> Tensor:
            return torch.cat([x, (x.diff(dim=-1).abs() - most).clamp_min(0)], dim=-1)

        none = torch.zeros_like(self.values[..., 1:])
        y = torch.cat([self.values, none], dim=-1)
        std = torch.cat([self.std.expand_as(self.values), none + FROZEN * data_std], dim=-1)
        return Measurement(seen, y, std, linear=False)


def prefix(previous: Tensor, frozen: int, overlap: int, data_std: float) -> Constraint:
    """Real-time chunking: the new chunk begins as the previous one goes on.

    The weight of the previous chunk is 1 for the first `frozen` actions, which are executed while the new chunk is
    computed, falls to 0 over those up to `overlap` (Black et al. 2025, eq. 5), and stays there. A weight w stands for an error
    of the previous chunk with the standard deviation `s sqrt(1/w - 1)`, s being that of the data.

    Args:
        previous: the previous chunk from now on, `(B, A, H)`.

    Raises:
        InputError: not `0 <= frozen <= overlap <= H`.
    """
    horizon = previous.shape[-1]
    if not 0 <= frozen <= overlap <= horizon:
        raise InputError(f"0 <= delay <= overlap <= {horizon} is needed, not a delay of {frozen} and {overlap} actions")
    left = (overlap - torch.arange(horizon)) / (overlap - frozen + 1)
    left = left.clamp(0, 1)
    weight = left * torch.expm1(left) / math.expm1(1)
    std = data_std * (1 / weight - 1).sqrt()
    std[:frozen] = 0.0
    return Constraint(previous, std.clamp_min(FROZEN * data_std).expand_as(previous))
