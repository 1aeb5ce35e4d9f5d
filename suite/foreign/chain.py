"""Networks trained at the timesteps of a discrete variance-preserving chain (Ho et al. 2020), at any noise level."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn

from suite.denoiser import HeadDenoiser
from suite.errors import InputError
from suite.foreign.unet import AttentionUNet, Layout
from suite.process import Process

_NOISIEST = 1e3  # sigma/alpha beyond which no network is asked: the signal is a thousandth of the noise

Rate = Annotated[float, Field(gt=0, lt=1)]


class Chain(BaseModel):
    """The forward chain `q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i)`, i = 0 .. steps - 1.

    Attributes:
        schedule: `linear` in beta (Ho et al. 2020), `scaled_linear`: linear in sqrt(beta) (Rombach et al. 2022), or
            `cosine` in sqrt(alpha bar) with beta <= 0.999 (Nichol and Dhariwal 2021, eq. 17).
        steps: number of timesteps.
        beta_start, beta_end: the rates at both ends (not used by `cosine`).
        betas: the rates themselves, instead of a schedule.
        timestep_scale: the network was shown this multiple of the timestep's number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    steps: int = Field(default=1000, ge=2, le=100_000)
    beta_start: Rate = 1e-4
    beta_end: Rate = 0.02
    betas: list[Rate] | None = None
    timestep_scale: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _counts(self) -> Chain:
        if self.betas is not None and len(self.betas) != self.steps:
            raise ValueError(f"there are {len(self.betas)} rates beta for {self.steps} timesteps")
        return self

    def rates(self) -> np.ndarray:
        """`beta_i` `(steps,)`, float64."""
        if self.betas is not None:
            return np.array(self.betas)
        if self.schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.steps)
        if self.schedule == "scaled_linear":
            return np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.steps) ** 2
        bar = np.cos((np.arange(self.steps + 1) / self.steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.asarray(np.minimum(1 - bar[1:] / bar[:-1], 0.999))

    def process(self) -> Process:
        """Variance-preserving process through the chain: clean at t = 0, timestep `i` at `t = (i + 1) / steps`.

        Monotone cubics in `t` interpolate `log alpha` (Fritsch and Carlson 1980), so its derivative is continuous.
        """
        log_alpha = np.concatenate([[0.0], np.cumsum(np.log1p(-self.rates())) / 2])
        pieces = PchipInterpolator(np.arange(self.steps + 1.0), log_alpha).c  # of the fraction of a step, cubic first
        table = torch.from_numpy(np.ascontiguousarray(pieces.T))

        def log(t: Tensor) -> Tensor:
            position = t.double() * self.steps
            piece = position.detach().floor().long().clamp(0, self.steps - 1)
            a, b, c, d = table.to(t.device)[piece].unbind(-1)
            u = position - piece
            return (((a * u + b) * u + c) * u + d).to(t.dtype)

        return Process(
            "vp-discrete",
            lambda t: torch.exp(log(t)),
            torch.zeros_like,
            lambda t: torch.sqrt(-torch.expm1(2 * log(t))),
            parameters={"steps": float(self.steps)},
        )

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is told at time `t`: `steps t - 1` within the timesteps it knows, in its own scale."""
        return self.timestep_scale * (self.steps * t - 1).clamp(0, self.steps - 1)


class ChainNetwork(nn.Module):
    """`E[x0 | z]` for `z = alpha x0 + sigma eps` by a network of a discrete chain: a drop-in for `Preconditioned`.

    Without an anchor only sigma/alpha matters: `u = z / sqrt(alpha^2 + sigma^2)` is a state of the chain at the time
    where the chain has the same ratio. Outside the timesteps the network is asked at the nearest one. With more noise
    its estimate is kept, finite at alpha = 0; with less its direction `v = (alpha u - x0) / sigma` (Salimans and Ho
    2022), so that `x0 = alpha u - sigma v` ends at `z / alpha` without noise.

    Args:
        layout: of the U-Net.
        chain: it was trained on.
        head: `eps`, `x0` or `v`.
    """

    architecture = "suite.foreign.AttentionUNet"

    def __init__(self, layout: Layout, chain: Chain, head: str) -> None:
        super().__init__()
        self.network = AttentionUNet(layout)
        self.chain, self.process = chain, chain.process()
        self.denoise = HeadDenoiser(self._evaluate, self.process, head)
        ends = torch.tensor([chain.steps, 1], dtype=torch.float64) / chain.steps
        low, high = self.process.log_snr(ends).tolist()
        self.log_snr_range = max(low, -math.log(_NOISIEST)), high

    @property
    def settings(self) -> dict[str, Any]:
        """What `from_settings` needs, as plain data for a card."""
        return {"layout": self.network.layout.model_dump(), "chain": self.chain.model_dump()}

    @classmethod
    def from_settings(cls, settings: dict[str, Any], head: str) -> ChainNetwork:
        """The inverse of `settings`; weights are random."""
        return cls(Layout(**settings["layout"]), Chain(**settings["chain"]), head)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The ratios sigma/alpha at which the network itself is asked."""
        low, high = self.log_snr_range
        return math.exp(-high), math.exp(-low)

    def _evaluate(self, u: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        dtype = self.network.head.weight.dtype
        timestep = self.chain.timestep(t).reshape(-1).expand(u.shape[0])
        out: Tensor = self.network(u.to(dtype), timestep).to(u.dtype)
        return out

    def forward(self, z: Tensor, alpha: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """`alpha`, `sigma`: one value per batch item, shape `(B or 1, 1, ..., 1)`; there is no `condition`.

        Raises:
            InputError: the noise level varies within an item, or a condition is given.
        """
        if alpha.ndim != z.ndim or alpha[0].numel() != 1:
            raise InputError(
                "this network takes one noise level per batch item; use one trained with per-element levels"
            )
        if condition is not None:
            raise InputError("this network was trained without a condition and cannot take one")
        alpha, sigma = alpha.double(), sigma.double()
        n = torch.sqrt(alpha**2 + sigma**2)
        alpha, sigma, u = alpha / n, sigma / n, z / n.to(z.dtype)
        log_snr = (alpha.log() - sigma.log()).clamp(*self.log_snr_range)
        t = self.process.time_of_log_snr(log_snr.cpu()).to(z.device)
        mean = self.denoise(u, t)
        share = (sigma / self.process.sigma(t)).clamp_max(1)  # 1 on the chain, and then the rest of `u` is 0
        rest = (alpha - share * self.process.alpha(t)).clamp_min(0)
        return share.to(z.dtype) * mean + rest.to(z.dtype) * u
