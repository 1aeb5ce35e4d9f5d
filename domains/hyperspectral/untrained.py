"""DDS2M: self-supervised diffusion with a network that nobody trained (Miao et al. 2023, ICCV).

The denoiser of the reverse diffusion is a network fitted, one step of Adam for each step of the diffusion, to the state of the one
cube at hand: `x0 = sum_r A_r(theta) o e_r(zeta)`, A the images of an untrained U-Net and e the spectra of an untrained
perceptron. The data enter by DDRM's transition in the spectral space of the operator.

What differs from the paper and its code, which runs ten networks for thousands of steps and keeps the iterate nearest to the truth:
one U-Net with R output channels; the state is held in the subspace of the whitened spectra (R components and a few guards), so
that noise is white and the cost does not grow with the bands; the spectra start at those of the noisy cube; and the iterate
is chosen by values of the cube that were held out, never by a truth.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suite.denoiser import Denoiser
from suite.measurement import Measurement
from suite.noise import Noise, generator
from suite.operators import LinearOperator
from suite.posterior.ddrm import DDRM
from suite.prior import native_bfloat16
from suite.process import edm

STEPS, CHECK, PATIENCE = 500, 20, 6
FIRST = 3.0
"""Noise level of the first step, in units of the noise of the data; below 1, the last, a fit would meet its own output."""

AVERAGE = 0.98
"""The estimate is the exponential average of the network's outputs, with the weight of the paper's code."""

CODES = 16


class SkipNetwork(nn.Module):
    """Fixed noise to R images: the hourglass of the deep image prior (Ulyanov, Vedaldi and Lempitsky 2018), R outputs sharing all.

    Strided convolutions down, bilinear interpolation up, thin skips: it draws smooth images with edges long before it draws noise.
    """

    def __init__(self, channels: int, widths: tuple[int, ...] = (32, 48, 64, 64), skip: int = 8) -> None:
        super().__init__()
        ins = (CODES, *widths[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(*_layer(i, n, 3, stride=2), *_layer(n, n, 3)) for i, n in zip(ins, widths, strict=True)
        )
        self.skip = nn.ModuleList(nn.Conv2d(i, skip, 1) for i in ins)
        below = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(b + skip), *_layer(b + skip, n, 3), *_layer(n, n, 1))
            for b, n in zip(below, widths, strict=True)
        )
        self.tail = nn.Conv2d(widths[0], channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(1, CODES, rows, columns)` to `(1, channels, rows, columns)`."""
        skips = []
        for down, skip in zip(self.down, self.skip, strict=True):
            skips.append(skip(x))
            x = down(x)
        for up in reversed(self.up):
            beside = skips.pop()
            x = up(torch.cat([F.interpolate(x, size=beside.shape[2:], mode="bilinear"), beside], 1))
        out: Tensor = self.tail(x)
        return out


def _layer(ins: int, outs: int, size: int, stride: int = 1) -> tuple[nn.Module, ...]:
    # zeros at the edges: a reflection needs levels larger than itself, which small scenes do not have
    conv = nn.Conv2d(ins, outs, size, stride=stride, padding=size // 2, padding_mode="replicate")
    return conv, nn.BatchNorm2d(outs), nn.LeakyReLU(0.2)


class Factors(nn.Module):
    """`x0 = sum_r A_r(theta) o e_r(zeta)` over P components, `(1, P, rows, columns)`.

    Args:
        size: rows and columns.
        rank: R.
        mean, scale: `(P,)`, the usual values of each component; the first R make the start of A.
        rng: of the fixed noise at both inputs.
    """

    codes: Tensor
    field: Tensor

    def __init__(self, size: tuple[int, int], rank: int, mean: Tensor, scale: Tensor, rng: torch.Generator) -> None:
        super().__init__()
        self.spatial = SkipNetwork(rank)
        last = nn.Linear(128, len(mean))
        nn.init.zeros_(last.weight)  # the spectra start at the components themselves
        nn.init.zeros_(last.bias)
        self.spectral = nn.Sequential(nn.Linear(CODES, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), last)
        self.register_buffer("field", torch.rand(1, CODES, *size, generator=rng))
        self.register_buffer("codes", torch.randn(rank, CODES, generator=rng))
        self.rank, self.mean, self.scale = rank, mean, scale

    def forward(self, shaken: Tensor, *, bfloat16: bool) -> Tensor:
        with torch.autocast(shaken.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            images = self.spatial(self.field + shaken)[0].float()
        images = images * self.scale[: self.rank, None, None] + self.mean[: self.rank, None, None]
        spectra = torch.eye(len(self.mean))[: self.rank].to(images) + self.spectral(self.codes)
        return torch.einsum("rhw,rp->phw", images, spectra)[None]


class _Settled(Exception):
    """The held-out values have not been met better for a while."""


class Untrained(Denoiser):
    """`E[x0 | x_t]` by factors that take one step of Adam towards x_t at each call, and the average of what they said.

    Args:
        factors: the untrained networks.
        heldout: mean square error of an estimate at held-out values, in units of their noise.
        weight: of each component in the loss, `(1, P, 1, 1)`.

    Attributes:
        best: the estimate of least held-out error; `error` is that error, `curve` all of them by step.
    """

    differentiable = False

    def __init__(
        self,
        factors: Factors,
        heldout: Callable[[Tensor], float],
        rng: torch.Generator,
        *,
        learning_rate: float = 0.01,
        shake: float = 0.03,
    ) -> None:
        super().__init__(edm())
        self.factors, self.heldout, self.rng, self.shake = factors.train(), heldout, rng, shake
        self.optimizer = torch.optim.Adam(factors.parameters(), lr=learning_rate)
        self.rate, self.calls, self.average = learning_rate, 0, torch.zeros(())
        self.bfloat16 = native_bfloat16(factors.field.device)
        self.best, self.error, self.best_call = torch.zeros(()), math.inf, 0
        self.curve: dict[int, float] = {}

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, self.calls / 20)
        shaken = self.shake * torch.randn(self.factors.field.shape, generator=self.rng).to(x.device)
        with torch.enable_grad():
            estimate = self.factors(shaken, bfloat16=self.bfloat16)
            loss = (self.process.alpha(t).to(x) * estimate - x).square().mean() / self.process.sigma(t).to(x) ** 2
            self.optimizer.zero_grad()
            loss.sum().backward()
            self.optimizer.step()
        kept = min(AVERAGE, (self.calls - 1) / (self.calls + 9))
        self.average = estimate.detach() if self.calls == 1 else kept * self.average + (1 - kept) * estimate.detach()
        if self.calls % CHECK == 0:
            self._judge()
        return self.average

    def _judge(self) -> None:
        error = self.curve[self.calls] = self.heldout(self.average)
        if error < self.error:
            self.best, self.error, self.best_call = self.average.clone(), error, self.calls
        elif self.calls - self.best_call >= PATIENCE * CHECK:
            raise _Settled


@dataclass(frozen=True)
class Fit:
    """What a self-supervised run found.

    Attributes:
        images: the estimate in units of the noise, `(P, rows, columns)`.
        heldout: its mean square error at held-out values in units of their noise; 1 is the least possible.
        evaluations: steps taken; `chosen` is the step whose estimate this is.
    """

    images: Tensor
    heldout: float
    evaluations: int
    chosen: int


def fit_untrained(
    y: Tensor,
    operator: LinearOperator,
    seen: Tensor,
    start: Tensor,
    rank: int,
    heldout: Callable[[Tensor], float],
    *,
    seed: int,
    identity: str,
    steps: int = STEPS,
) -> Fit:
    """DDS2M on components whose noise has deviation 1.

    Args:
        y: `(1, P, *range)`.
        operator: acts on every component alike; with an SVD.
        seen: which entries of y were measured, `(1, 1, *range)`.
        start: a first guess of the signal `(1, P, rows, columns)`; only its mean, its deviation and the start of the chain.
        rank: R, at most P.
        heldout: see `Untrained`.
        steps: of the diffusion, an upper bound.
    """
    scale = (start.var((0, 2, 3)) - 1).clamp_min(0.25).sqrt()
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        torch.manual_seed(generator(seed, identity).initial_seed())
        mean, codes = start.mean((0, 2, 3)), generator(seed, f"{identity} codes")
        factors = Factors((start.shape[2], start.shape[3]), rank, mean, scale, codes)
    factors = factors.to(start.device)
    denoiser = Untrained(factors, heldout, generator(seed, f"{identity} steps"))
    noise = torch.where(seen, 1.0, math.inf) if not bool(seen.all()) else 1.0
    time = float(denoiser.process.time_of_log_snr(torch.tensor(-math.log(FIRST), dtype=torch.float64)))
    method = DDRM(eta=0.95, start=time, finest=1.0, init=start)
    with contextlib.suppress(_Settled):
        method.run(
            denoiser, Measurement(operator, y, noise), start, noise=Noise.of(seed, [f"{identity} chain"]), steps=steps
        )
    if not math.isfinite(denoiser.error):  # fewer steps than a check
        denoiser._judge()
    return Fit(denoiser.best[0], denoiser.error, denoiser.calls, denoiser.best_call)
