"""A small diffusion transformer whose feed-forward layers are mixtures of experts, routed by the noise level alone.

After Reuss et al. 2024 (MoDE, arXiv 2412.12953). Departures: the k likeliest experts are taken in training too, where they
draw k at random (a resumed training then equals an undisturbed one), and attention is not causal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domains.robot.embedding import LevelEmbedding
from suite.errors import InputError


def swiglu(x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """`W_o (silu(W_1 x) * W_2 x)` for `x` `(..., D)`, `inner` `(2 M, D)` = [W_1; W_2], `outer` `(D, M)`."""
    first, second = F.linear(x, inner).chunk(2, dim=-1)
    return F.linear(F.silu(first) * second, outer)


class Experts(nn.Module):
    """`sum_e g_e(noise) swiglu_e(h)` over the `active` likeliest experts; their weights g sum to 1.

    Args:
        features: width of the noise level's embedding, the only thing the router sees.
    """

    def __init__(self, width: int, features: int, experts: int, active: int) -> None:
        super().__init__()
        hidden = 2 * width
        self.active = active
        self.router = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, experts))
        self.inner = nn.Parameter(torch.randn(experts, 2 * hidden, width) * width**-0.5)
        self.outer = nn.Parameter(torch.randn(experts, width, hidden) * (0.2 * hidden**-0.5))  # near the identity

    def choose(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `(B, active)` and numbers `(B, active)` of the experts of each item."""
        weight, chosen = self.router(embedding).softmax(-1).topk(self.active, dim=-1)
        return weight / weight.sum(-1, keepdim=True), chosen

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """`(B, T, D)`; each expert works on the items that chose it."""
        weight, chosen = self.choose(embedding)
        out = torch.zeros_like(h)
        for expert in chosen.unique().tolist():
            rows, place = torch.nonzero(chosen == expert, as_tuple=True)
            part = swiglu(h[rows], self.inner[expert], self.outer[expert]) * weight[rows, place, None, None]
            out = out.index_add(0, rows, part.to(out.dtype))
        return out

    def load_balance(self, embedding: Tensor) -> Tensor:
        """`E sum_e f_e p_e`: shares of the choices and mean probabilities; 1 when all are used alike (Fedus et al. 2022)."""
        probability = self.router(embedding).float().softmax(-1)
        chosen = probability.topk(self.active, dim=-1).indices
        share = torch.bincount(chosen.flatten(), minlength=probability.shape[1]) / chosen.numel()
        return probability.shape[1] * (share * probability.mean(0)).sum()


class Block(nn.Module):
    """Attention over the tokens, then a feed-forward layer, each on a normalised residual stream."""

    def __init__(self, width: int, heads: int, features: int, experts: int, active: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.experts = Experts(width, features, experts, active)

    def forward(self, h: Tensor, feed_forward: Callable[[Tensor], Tensor]) -> Tensor:
        """`(B, T, D)`; `feed_forward` is `self.experts` at the noise level, or the same thing fused."""
        q, k, v = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + feed_forward(self.norm2(h))


class MoDE(nn.Module):
    """Transformer over the tokens [noise level, observation, action 1, ..., action H] with experts routed by the noise level.

    Args:
        action_dim, horizon: shape of a chunk.
        condition_dim: numbers that describe the observation.
        width, blocks, heads: of the transformer; `width` is a multiple of `heads`.
        features: width of the noise level's embedding.
        experts, active: feed-forward experts of a block, and how many of them a noise level uses.
        balance: weight of the load balance in the training loss.

    Raises:
        InputError: sizes that do not fit each other.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        condition_dim: int,
        width: int = 128,
        blocks: int = 4,
        features: int = 64,
        heads: int = 4,
        experts: int = 4,
        active: int = 2,
        balance: float = 0.01,
    ) -> None:
        super().__init__()
        if width % heads or not 1 <= active <= experts:
            raise InputError(
                f"a MoDE network needs a width that is a multiple of its heads, and 1 to {experts} active experts, not "
                f"width {width}, {heads} heads and {active} active"
            )
        self.balance = balance
        self.embed = LevelEmbedding(1, features)
        self.level = nn.Linear(features, width)
        self.observation = nn.Linear(condition_dim, width)
        self.action = nn.Linear(action_dim, width)
        self.place = nn.Parameter(0.02 * torch.randn(horizon + 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, features, experts, active) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.tail = nn.Linear(width, action_dim)

    @property
    def experts(self) -> list[Experts]:
        """Those of each block."""
        return [block.experts for block in self.blocks if isinstance(block, Block)]

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor) -> Tensor:
        """`(B, A, H)` for `x` `(B, A, H)`, `c_noise` `(B, 1)`, `condition` `(B, K)`."""
        embedding = self.embed(c_noise)
        layers = [partial(experts, embedding=embedding) for experts in self.experts]
        return self.run(x, self.level(embedding), condition, layers)

    def run(self, x: Tensor, level: Tensor, condition: Tensor, layers: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """The network with a given noise token `(B, D)` and feed-forward layers."""
        tokens = [level[:, None], self.observation(condition)[:, None], self.action(x.transpose(1, 2))]
        h = torch.cat(tokens, dim=1) + self.place
        for block, layer in zip(self.blocks, layers, strict=True):
            h = block(h, layer)
        out: Tensor = self.tail(self.norm(h[:, 2:])).transpose(1, 2)
        return out

    def load_balance(self, c_noise: Tensor) -> Tensor:
        """What the training loss adds for experts that are used unequally in a batch."""
        embedding = self.embed(c_noise)
        parts = [experts.load_balance(embedding) for experts in self.experts]
        return self.balance * torch.stack(parts).mean()
