"""Denoisers of action chunks `(B, A, horizon)`, conditioned on a few observations `(B, K)`.

The backbones answer `F(input, c_noise, condition)`; `ActionNetwork` puts the suite's preconditioning or one of its heads
around them, so that every process and solver of the suite applies.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domains.robot.embedding import LevelEmbedding
from domains.robot.mode import MoDE
from domains.robot.origin import Origin, Relative
from domains.robot.schedules import remembered
from domains.robot.vision import ImageEncoder
from suite.denoiser import HEADS, Denoiser, HeadDenoiser, Network, target
from suite.errors import InputError
from suite.network import Preconditioned
from suite.process import Process

ACTION_HEADS = ("edm", "eps", "x0", "v", "flow")


class _MLPBlock(nn.Module):
    """`h + W2 silu(W1 norm(h) + P e)`."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.modulation = nn.Linear(features, width)
        self.outer = nn.Linear(width, width)
        with torch.no_grad():  # near the identity at the start
            self.outer.weight.mul_(0.2)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = h + self.outer(F.silu(self.inner(self.norm(h)) + self.modulation(embedding)))
        return out


class ResidualMLP(nn.Module):
    """Residual multi-layer perceptron over the flattened chunk: the fastest choice on a CPU.

    Args:
        action_dim, horizon: shape of a chunk.
        condition_dim: numbers that describe the observation.
        width, blocks: of the residual stream.
        features: width of the noise level's embedding.
        levels: 1 noise level for the chunk, or `horizon`: one for each action.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        condition_dim: int,
        width: int = 256,
        blocks: int = 4,
        features: int = 64,
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.embed = LevelEmbedding(levels, features)
        self.head = nn.Linear(action_dim * horizon + condition_dim, width)
        self.blocks = nn.ModuleList(_MLPBlock(width, features) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.tail = nn.Linear(width, action_dim * horizon)

    @property
    def layers(self) -> list[_MLPBlock]:
        return [block for block in self.blocks if isinstance(block, _MLPBlock)]

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor) -> Tensor:
        """`(B, A, H)` for `x` `(B, A, H)`, `c_noise` `(B, levels)`, `condition` `(B, K)`."""
        embedding = self.embed(c_noise)
        h = self.head(torch.cat([x.flatten(1), condition], dim=1))
        for block in self.blocks:
            h = block(h, embedding)
        out: Tensor = self.tail(self.norm(h)).reshape(x.shape)
        return out


class _FiLMBlock(nn.Module):
    """Two convolutions, each normalised by groups; scale and shift from the condition between them."""

    def __init__(self, before: int, after: int, features: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(before, after, kernel, padding=kernel // 2)
        self.norm1 = nn.GroupNorm(groups, after)
        self.film = nn.Linear(features, 2 * after)
        self.conv2 = nn.Conv1d(after, after, kernel, padding=kernel // 2)
        self.norm2 = nn.GroupNorm(groups, after)
        self.skip = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[..., None].chunk(2, dim=1)
        h = F.mish(self.norm1(self.conv1(x))) * (1 + scale) + shift
        out: Tensor = F.mish(self.norm2(self.conv2(h))) + self.skip(x)
        return out


class FiLMUNet(nn.Module):
    """1-D U-Net over the horizon with FiLM conditioning (Chi et al. 2023, Diffusion Policy, section 3.1).

    Args:
        channels: width of each level; each level halves the horizon.
        kernel: odd width of the convolutions.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        condition_dim: int,
        channels: Sequence[int] = (64, 128, 256),
        features: int = 128,
        kernel: int = 5,
    ) -> None:
        super().__init__()
        multiple = 2 ** (len(channels) - 1)
        if not channels or horizon % multiple or kernel % 2 == 0 or any(c % 8 for c in channels):
            raise InputError(
                f"a U-Net of {len(channels)} levels needs a horizon that is a multiple of {multiple}, channels that are "
                f"multiples of 8 and an odd kernel, not {horizon}, {list(channels)} and {kernel}"
            )
        self.embed = LevelEmbedding(1, features)
        wide = features + condition_dim

        def block(before: int, after: int) -> _FiLMBlock:
            return _FiLMBlock(before, after, wide, kernel, 8)

        pairs = list(pairwise(channels))
        self.head = block(action_dim, channels[0])
        self.down = nn.ModuleList(block(a, b) for a, b in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(a, a, 3, stride=2, padding=1) for a, _ in pairs)
        self.middle = block(channels[-1], channels[-1])
        self.grow = nn.ModuleList(nn.ConvTranspose1d(b, b, 4, stride=2, padding=1) for _, b in pairs)
        self.up = nn.ModuleList(block(a + b, a) for a, b in pairs)
        self.tail = nn.Conv1d(channels[0], action_dim, 1)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor) -> Tensor:
        """`(B, A, H)` for `x` `(B, A, H)`, `c_noise` `(B, levels)`, `condition` `(B, K)`."""
        embedding = torch.cat([self.embed(c_noise), condition], dim=1)
        x = self.head(x, embedding)
        skips = []
        for shrink, block in zip(self.shrink, self.down, strict=True):
            skips.append(x)
            x = block(shrink(x), embedding)
        x = self.middle(x, embedding)
        for grow, block in zip(reversed(self.grow), reversed(self.up), strict=True):
            x = block(torch.cat([skips.pop(), grow(x)], dim=1), embedding)
        out: Tensor = self.tail(x)
        return out


BACKBONES: dict[str, type[nn.Module]] = {"mlp": ResidualMLP, "unet": FiLMUNet, "mode": MoDE}


class ActionNetwork(Preconditioned):
    """A backbone with its head: the answer to `E[action chunk | noisy chunk, observation]`.

    Args:
        kind: key of `BACKBONES`.
        head: `edm` (preconditioned, suite/network.py) or eps, x0, v, flow (suite/denoiser.py).
        process: the process it is trained on.
        settings: arguments of the backbone.
        vision: arguments of the image encoder, whose features end the condition; None: there is none.

    Raises:
        InputError: no such backbone or head, or settings it does not have.
    """

    def __init__(
        self,
        kind: str,
        head: str,
        process: Process,
        sigma_data: float,
        sigma_range: tuple[float, float],
        settings: dict[str, Any],
        vision: dict[str, Any] | None = None,
    ) -> None:
        if kind not in BACKBONES or head not in ACTION_HEADS:
            raise InputError(
                f"there is no action network {kind!r} with the head {head!r}; choose {' or '.join(BACKBONES)}, and "
                f"one of {', '.join(ACTION_HEADS)}"
            )
        if process.anchored:
            raise InputError(f"the process {process.name} is anchored at a degraded signal, and actions have none")
        try:
            backbone = BACKBONES[kind](**settings)
        except (TypeError, RuntimeError, ZeroDivisionError) as error:
            raise InputError(f"the network {kind}: {str(error).splitlines()[0]}") from error
        super().__init__(backbone, sigma_data, sigma_range)
        self.head, self.process = head, remembered(process)
        self.encoder = None if vision is None else ImageEncoder(**vision)
        self.origin: Origin | None = None  # set where the chunks of training are relative to the robot
        self.horizon = int(settings["horizon"])
        self.levels = int(settings.get("levels", 1))
        if self.levels not in (1, self.horizon):
            raise InputError(
                f"a network knows one noise level, or one for each of {self.horizon} actions, not {self.levels}"
            )

    def condition(self, seen: Tensor, pictures: Tensor | None) -> Tensor:
        """What the backbone is conditioned on: observations `(B, K)`, and features of the pictures where there is an encoder.

        Raises:
            InputError: pictures are missing, or there is nothing that could see them.
        """
        if (pictures is None) != (self.encoder is None):
            raise InputError("a policy with cameras needs their pictures, and one without takes none")
        if pictures is None or self.encoder is None:
            return seen
        return torch.cat([seen, self.encoder(pictures).to(seen.dtype)], dim=1)

    def raw(self, z: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The backbone's own output; `t` is `(B or 1, 1, 1)`, or `(B or 1, 1, H)` where the network knows a level per action.

        Raises:
            InputError: no condition, or times per action given to a network that knows one per chunk.
        """
        c_in, c_noise = self.inputs(z, t)
        if condition is None:
            raise InputError("an action network needs the observation as its condition, and none was given")
        out: Tensor = self.network(c_in * z, c_noise, condition)
        return out

    def inputs(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the backbone is given at these times: the factor of `z`, and `c_noise` `(B, levels)`."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        c_in = self.coefficients(alpha, sigma)[2].to(z.dtype)
        ratio = (sigma / alpha.clamp_min(1e-12)).clamp(*self.sigma_range)
        c_noise = (ratio.log() / 4).to(z.dtype).flatten(1)
        if c_noise.shape[1] not in (1, self.levels):
            raise InputError("this network was trained with one noise level per chunk; train it with stream.share > 0")
        return c_in, c_noise.expand(len(z), self.levels)

    def denoiser(self, cached: Network | None = None) -> Denoiser:
        """`E[x0 | z]`, read from the head; `cached` stands in for `raw`, and no gradient passes through it."""
        raw, differentiable = cached or self.raw, cached is None

        def mean(z: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            c_skip, c_out, _ = self.coefficients(self.process.alpha(t), self.process.sigma(t))
            return c_skip.to(z.dtype) * z + c_out.to(z.dtype) * raw(z, t, condition)

        known = self.head in HEADS
        denoiser = HeadDenoiser(
            raw if known else mean, self.process, self.head if known else "x0", differentiable=differentiable
        )
        return denoiser if self.origin is None else Relative(denoiser, self.origin)

    def loss(self, x0: Tensor, condition: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Squared error of the head's own target, one value per chunk `(B,)`; `t` is `(B,)` or `(B, H)`.

        In training mode the load balance of mixed experts is added.
        """
        time = t.reshape(len(t), 1, -1)
        if self.origin is not None:
            x0 = x0 - self.origin(condition)
        z = self.process.marginal(x0, time, eps)
        out = self.raw(z, time, condition)
        if self.head in HEADS:
            wanted = target(self.head, self.process, x0, eps, time)
        else:
            c_skip, c_out, _ = self.coefficients(self.process.alpha(time), self.process.sigma(time))
            wanted = (x0 - c_skip.to(x0.dtype) * z) / c_out.to(x0.dtype)
        error = (out - wanted).square().flatten(1).mean(1)
        if self.training and isinstance(self.network, MoDE):
            error = error + self.network.load_balance(self.inputs(z, time)[1])
        return error
