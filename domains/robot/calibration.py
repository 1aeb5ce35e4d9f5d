"""How far a denoiser's answer lies from a chunk that fits the observation: the yardstick of the residual test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from domains.robot.network import ActionNetwork
from suite.noise import Noise
from suite.process import Process


@dataclass(frozen=True)
class Calibration:
    """Limits of `rms(D - x0)` for held-out demonstrations x0, re-noised to rising ratios sigma/alpha.

    Attributes:
        ratios, limits: `(L,)`; 99 of 100 distances lie below the limit.
    """

    ratios: Tensor
    limits: Tensor

    def limit(self, ratio: float) -> float:
        """The limit at this ratio, linear in its logarithm."""
        return float(interpolate(torch.tensor([ratio]).log(), self.ratios.log(), self.limits)[0])

    def ratio_for(self, distance: Tensor) -> Tensor:
        """The ratio whose limit is this distance `(B,)`; infinite where no limit is so large."""
        rising = torch.cummax(self.limits, 0).values + 1e-6 * torch.arange(len(self.limits))
        ratio = interpolate(distance, rising, self.ratios.log()).exp()
        return torch.where(distance > rising[-1], torch.inf, ratio)


def calibrate(
    net: ActionNetwork, chunks: Tensor, conditions: Tensor, ratios: Tensor, noise: Noise, quantile: float = 0.99
) -> Calibration:
    """Measure the limits on held-out chunks `(N, A, H)` and their conditions."""
    denoiser = net.denoiser()
    limits = []
    for ratio in ratios:
        t = time_of_ratio(net.process, ratio.reshape(1, 1, 1))
        z = net.process.marginal(chunks, t, noise.normal(chunks))
        with torch.no_grad():
            limits.append(torch.quantile(rms(denoiser(z, t, conditions) - chunks), quantile))
    return Calibration(ratios, torch.stack(limits).clamp_min(1e-4))


def rms(x: Tensor) -> Tensor:
    """Root mean square of each item, `(B,)`."""
    return x.square().flatten(1).mean(1).sqrt()


def time_of_ratio(process: Process, ratio: Tensor) -> Tensor:
    """Times at which sigma/alpha = ratio."""
    return process.time_of_log_snr(-ratio.double().log())


def interpolate(x: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear, constant outside the nodes."""
    index = torch.searchsorted(nodes, x.contiguous()).clamp(1, len(nodes) - 1)
    below, above = nodes[index - 1], nodes[index]
    share = ((x - below) / (above - below)).clamp(0, 1)
    return values[index - 1] + share * (values[index] - values[index - 1])
