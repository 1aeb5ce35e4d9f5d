"""The experts of a MoDE network fused for the steps of one time grid.

The router sees the noise level only, so each (layer, step) uses experts that are known beforehand: stacked, they are one wider
feed-forward layer. Noise tokens and routing weights are kept as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from domains.robot.mode import Block, Experts, MoDE
from domains.robot.network import ActionNetwork
from suite.denoiser import Denoiser
from suite.errors import InputError


@dataclass(frozen=True)
class Fused:
    """The chosen experts of one layer at one step: `((silu(h W_1) * h W_2) * gate) W_o`, as wide as all of them together.

    The matrices are stored as the product reads them, (inputs, outputs) in rows: with few tokens that is a third faster.
    """

    first: Tensor
    second: Tensor
    outer: Tensor
    gate: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        hidden = F.silu(h @ self.first, inplace=True)
        return hidden.mul_(h @ self.second).mul_(self.gate) @ self.outer


class _Attention:
    """The attention of a block, its matrices stored as those of `Fused`."""

    def __init__(self, block: Block) -> None:
        self.block, self.heads = block, block.heads
        self.qkv, self.merge = (layer.weight.t().contiguous() for layer in (block.qkv, block.merge))

    def __call__(self, h: Tensor) -> Tensor:
        """`h` `(T, D)` and what attention adds to it."""
        tokens, width = h.shape
        block = self.block
        mixed = torch.addmm(block.qkv.bias, block.norm1(h), self.qkv)
        q, k, v = mixed.view(tokens, 3, self.heads, width // self.heads).permute(1, 2, 0, 3)
        scores = torch.bmm(q, k.transpose(1, 2)).mul_((width // self.heads) ** -0.5)
        seen = torch.bmm(scores.softmax(-1), v).transpose(0, 1).reshape(tokens, width)
        return torch.addmm(block.merge.bias, seen, self.merge).add_(h)


class ExpertCache:
    """An action network of the kind `mode` at the times of one grid, and no others.

    Equal to the network itself up to rounding. The wide weights are shared by all steps that choose the same experts.

    Args:
        grid: decreasing times `(steps + 1,)` of a sampler; 0, the clean state, is never evaluated.

    Attributes:
        fused: by (layer, step).

    Raises:
        InputError: another kind of network.
    """

    @torch.no_grad()
    def __init__(self, net: ActionNetwork, grid: Tensor) -> None:
        if not isinstance(net.network, MoDE):
            raise InputError("cache needs a network with mixed experts (network.kind mode), and this one has none")
        self.net, self.network = net, net.network
        times = grid[grid > 0].double()
        self.steps = {t: step for step, t in enumerate(times.tolist())}
        self.c_in, c_noise = net.inputs(torch.zeros(len(times), 1, 1), times[:, None, None])
        embedding = self.network.embed(c_noise)
        self.levels = self.network.level(embedding)
        self.blocks = [block for block in self.network.blocks if isinstance(block, Block)]
        self.attention = [_Attention(block) for block in self.blocks]
        self.fused: dict[tuple[int, int], Fused] = {}
        for layer, experts in enumerate(self.network.experts):
            for step, fused in enumerate(_fuse(experts, embedding)):
                self.fused[layer, step] = fused

    def denoiser(self) -> Denoiser:
        """`E[x0 | z]`; not differentiable."""
        return self.net.denoiser(self.raw)

    @torch.no_grad()
    def raw(self, z: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """As `ActionNetwork.raw`, at a time of the grid.

        Raises:
            InputError: a time the cache was not built for, or several at once.
        """
        if condition is None:
            raise InputError("an action network needs the observation as its condition, and none was given")
        step = self.step(t)
        layers = [self.fused[layer, step] for layer in range(len(self.network.blocks))]
        if len(z) > 1:
            return self.network.run(self.c_in[step] * z, self.levels[step].expand(len(z), -1), condition, layers)
        return self._single(self.c_in[step] * z, step, condition, layers)

    def _single(self, x: Tensor, step: int, condition: Tensor, layers: list[Fused]) -> Tensor:
        """`MoDE.run` for one robot, in plain matrix products."""
        network = self.network
        tokens = [self.levels[step : step + 1], network.observation(condition), network.action(x[0].t())]
        h = torch.cat(tokens).add_(network.place)
        for block, attention, layer in zip(self.blocks, self.attention, layers, strict=True):
            h = attention(h)
            h = h + layer(block.norm2(h))
        out: Tensor = network.tail(network.norm(h[2:])).t()[None]
        return out

    def step(self, t: Tensor) -> int:
        """Number of the grid's step at this time, the same for the whole batch."""
        asked = set(t.flatten().tolist())
        step = self.steps.get(asked.pop()) if len(asked) == 1 else None
        if step is None:
            raise InputError(
                f"the expert cache was built for the {len(self.steps)} noise levels of one sampler's grid and is asked for "
                "another one; set cache to false, or build it for this grid"
            )
        return step


def _fuse(experts: Experts, embedding: Tensor) -> list[Fused]:
    """The layer at each of the noise levels `(S, features)`."""
    hidden = experts.outer.shape[2]
    wide: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}
    out = []
    for weight, chosen in zip(*experts.choose(embedding), strict=True):
        order = chosen.argsort()
        key = tuple(chosen[order].tolist())
        if key not in wide:
            first, second = experts.inner[list(key)].unflatten(1, (2, hidden)).transpose(0, 1).flatten(1, 2)
            outer = torch.cat([experts.outer[e].t() for e in key])
            wide[key] = first.t().contiguous(), second.t().contiguous(), outer.contiguous()
        out.append(Fused(*wide[key], weight[order].repeat_interleave(hidden)))
    return out
