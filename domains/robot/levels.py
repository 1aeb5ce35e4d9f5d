"""Noise levels are few: what depends on them alone is computed once and remembered.

A control loop evaluates a small network at the same few levels again and again. Of such an evaluation the schedules, the
embedding of the level and its modulation of every layer take about half of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.robot.network import ActionNetwork, ResidualMLP
from suite.denoiser import Denoiser

_MOST = 512  # levels remembered; then all are forgotten


@dataclass(frozen=True)
class _Level:
    """A level as the network sees it: coefficients of the preconditioning, and the shift of every block."""

    skip: Tensor
    out: Tensor
    scale: Tensor
    shifts: list[Tensor]


class SteadyMLP(Denoiser):
    """`E[x0 | z]` of an action network with the backbone `mlp` and the head `edm`, its levels remembered.

    The same numbers as `ActionNetwork.denoiser`, whose `plain` form it takes for batches with times of their own.

    Raises:
        ValueError: another backbone or head.
    """

    def __init__(self, net: ActionNetwork) -> None:
        super().__init__(net.process)
        if not isinstance(net.network, ResidualMLP) or net.head != "edm":
            raise ValueError(f"levels are remembered for the backbone mlp with the head edm, not {net.head}")
        self.net, self.backbone, self.plain = net, net.network, net.denoiser()
        self._known: dict[tuple[float, ...], _Level] = {}
        self._version = -1

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """See `Denoiser`."""
        if y is None or t.shape[0] != 1 or t.shape[1:-1].numel() != 1 or x.device.type != "cpu":
            return self.plain(x, t, y)
        level = self._level(t)
        backbone, origin = self.backbone, self.net.origin
        at = 0.0 if origin is None else origin(y)
        x = x if origin is None else x - self.process.alpha(t).to(x.dtype) * at
        h = backbone.head(torch.cat([(level.scale * x).flatten(1), y], dim=1))
        for block, shift in zip(backbone.layers, level.shifts, strict=True):
            h = h + block.outer(F.silu(block.inner(block.norm(h)) + shift))
        answer: Tensor = at + level.skip * x + level.out * backbone.tail(backbone.norm(h)).reshape(x.shape)
        return answer

    @torch.no_grad()
    def _level(self, t: Tensor) -> _Level:
        version = self.backbone.tail.weight._version  # training changes weights in place
        if version != self._version or len(self._known) >= _MOST:
            self._known.clear()
            self._version = version
        key = tuple(t.flatten().tolist())
        level = self._known.get(key)
        if level is None:
            skip, out, _ = self.net.coefficients(self.process.alpha(t), self.process.sigma(t))
            scale, c_noise = self.net.inputs(torch.zeros(1, 1, 1), t)
            embedding = self.backbone.embed(c_noise)
            shifts = [block.modulation(embedding) for block in self.backbone.layers]
            level = self._known[key] = _Level(skip.float(), out.float(), scale, shifts)
        return level
