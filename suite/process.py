"""Gaussian processes between a clean signal and noise, optionally anchored at a degraded signal.

Every process of the suite has the one-time marginals

    x_t = alpha(t) x0 + beta(t) y + sigma(t) eps,      t from 1 (noisy) to 0 (clean),

so with `z = x_t - beta(t) y` it is an ordinary `(alpha, sigma)` diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from suite.errors import InputError

Schedule = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Process:
    """`x_t = alpha(t) x0 + beta(t) y + sigma(t) eps`.

    Attributes:
        name: key of `PROCESSES`.
        alpha, beta, sigma: schedules; each maps `t` in [0, 1] (any shape) to a tensor of the same shape.
        anchored: True when `y` takes part (`beta` is not zero); the process then starts at `y`.
        parameters: the arguments that made it, for the record.
    """

    name: str
    alpha: Schedule
    beta: Schedule
    sigma: Schedule
    anchored: bool = False
    parameters: dict[str, float] = field(default_factory=dict)

    def shift(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """`z = x - beta(t) y`: the state of the equivalent unanchored diffusion.

        Raises:
            InputError: the process is anchored and `y` is missing.
        """
        if not self.anchored:
            return x
        if y is None:
            raise InputError(f"the process {self.name} is anchored at a degraded signal y, and none was given")
        return x - self.beta(t).to(x.dtype) * y

    def marginal(self, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None = None) -> Tensor:
        """`x_t` for a given noise `eps`; `t` broadcasts against `x0`."""
        x = self.alpha(t).to(x0.dtype) * x0 + self.sigma(t).to(x0.dtype) * eps
        if self.anchored:
            x = x + (x0 - self.shift(x0, t, y))
        return x

    def start(self, eps: Tensor, y: Tensor | None = None, t: float = 1.0) -> Tensor:
        """State at the start time: `(alpha + beta) y + sigma eps` when anchored (taking y for x0), else `sigma eps`.

        Exact where alpha(t) = 0 or x0 = y; otherwise it leaves the mismatch `alpha(t) (x0 - y)`, or `alpha(t) x0`.
        """
        time = torch.full((1,) * eps.ndim, t, dtype=torch.float64, device=eps.device)
        return self.marginal(torch.zeros_like(eps) if y is None else y.expand_as(eps), time, eps, y)

    def log_snr(self, t: Tensor) -> Tensor:
        """`lambda(t) = log(alpha / sigma)` (half the log-SNR), decreasing; infinite at the ends where one vanishes."""
        alpha = self.alpha(t)
        lam = torch.log(alpha) - torch.log(self.sigma(t))
        return torch.where(alpha == 0, -torch.inf, lam)  # 0/0 at the anchored end of a bridge is no signal

    def time_of_log_snr(self, lam: Tensor) -> Tensor:
        """Inverse of `log_snr` by bisection (float64, to 1e-15), clipped to [0, 1]."""
        lam = lam.double()
        low, high = torch.zeros_like(lam), torch.ones_like(lam)
        for _ in range(60):
            mid = (low + high) / 2
            noisier = self.log_snr(mid) < lam
            low, high = torch.where(noisier, low, mid), torch.where(noisier, mid, high)
        return (low + high) / 2

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(alpha', beta', sigma')` at `t`, by automatic differentiation."""

        def slope(schedule: Schedule, time: Tensor) -> Tensor:
            value = schedule(time)
            return torch.autograd.grad(value.sum(), time)[0] if value.requires_grad else torch.zeros_like(time)

        with torch.inference_mode(False), torch.enable_grad():
            time = t.detach().clone().requires_grad_()
            return slope(self.alpha, time), slope(self.beta, time), slope(self.sigma, time)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Markov kernel of `z` from `s` to the noisier `t`: `z_t = a z_s + b xi`; returns `(a, b)`.

        It exists where alpha(t) > 0 and sigma/alpha does not decrease from `s` to `t`.

        Raises:
            InputError: no such kernel between these times.
        """
        alpha_s, alpha_t, sigma_s, sigma_t = self.alpha(s), self.alpha(t), self.sigma(s), self.sigma(t)
        if bool((alpha_t <= 0).any()):
            raise InputError(f"{self.name} cannot be re-noised to a time where alpha = 0; stop before t = 1")
        a = alpha_t / alpha_s
        variance = sigma_t**2 - (a * sigma_s) ** 2
        if bool((variance < -1e-9 * sigma_t**2).any()):
            raise InputError(f"{self.name} has no kernel here: sigma/alpha must not decrease; re-noise from s < t")
        return a, variance.clamp_min(0).sqrt()

    def renoise(self, x: Tensor, s: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Tensor:
        """Carry `x_s` to the noisier time `t` with fresh `noise` ~ N(0, 1), by the Markov kernel only."""
        a, b = self.transition(s, t)
        z = a.to(x.dtype) * self.shift(x, s, y) + b.to(x.dtype) * noise
        return z if y is None or not self.anchored else z + self.beta(t).to(x.dtype) * y


# --- the members ------------------------------------------------------------------------------------------------------


def _one(t: Tensor) -> Tensor:
    return torch.ones_like(t)


def _zero(t: Tensor) -> Tensor:
    return torch.zeros_like(t)


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Variance preserving, linear rate (Ho et al. 2020; Song et al. 2021, eq. 32-33)."""

    def log_alpha(t: Tensor) -> Tensor:
        return -0.5 * (beta_min * t + 0.5 * (beta_max - beta_min) * t**2)

    return Process(
        "vp",
        lambda t: torch.exp(log_alpha(t)),
        _zero,
        lambda t: torch.sqrt(-torch.expm1(2 * log_alpha(t))),
        parameters={"beta_min": beta_min, "beta_max": beta_max},
    )


def vp_cosine(s: float = 0.008) -> Process:
    """Variance preserving, cosine (Nichol and Dhariwal 2021, eq. 17), normalised to alpha(0) = 1; alpha(1) = 0."""
    rate = math.pi / 2 / (1 + s)
    phi0 = s * rate

    def alpha(t: Tensor) -> Tensor:  # cos(phi0 + rate t) / cos(phi0), written so that it vanishes exactly at t = 1
        return (torch.sin(rate * (1 - t)) / math.sin(rate)).clamp(0, 1)

    def sigma(t: Tensor) -> Tensor:  # 1 - alpha^2 without cancellation
        return torch.sqrt((torch.sin(rate * t) * torch.sin(rate * t + 2 * phi0)).clamp_min(0)) / math.cos(phi0)

    return Process("vp-cosine", alpha, _zero, sigma, parameters={"s": s})


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Process:
    """Variance exploding, geometric (Song et al. 2021, eq. 30)."""
    return Process(
        "ve",
        _one,
        _zero,
        lambda t: sigma_min * torch.exp(t * math.log(sigma_max / sigma_min)),
        parameters={"sigma_min": sigma_min, "sigma_max": sigma_max},
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Process:
    """`x = x0 + sigma eps` with uniform `t` on the rho-grid (Karras et al. 2022, eq. 5)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return Process(
        "edm",
        _one,
        _zero,
        lambda t: (low + t * (high - low)) ** rho,
        parameters={"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho},
    )


def interpolant(noise: float = 1.0) -> Process:
    """Straight path from x0 to y with a Brownian bridge's noise: `(1 - t) x0 + t y + noise sqrt(t (1 - t)) eps`.

    The one-sided view of a stochastic interpolant (Albergo, Boffi and Vanden-Eijnden 2023, eq. 2.1 with linear I); also BBDM
    (Li et al. 2023, `noise = sqrt(2)`) and the limit k -> 1 of `sb_ve`. Exactly y at t = 1.
    """
    return Process(
        "interpolant",
        lambda t: 1 - t,
        lambda t: t,
        lambda t: noise * torch.sqrt((t * (1 - t)).clamp_min(0)),
        anchored=True,
        parameters={"noise": noise},
    )


def flow_matching() -> Process:
    """Straight path `x = (1 - t) x0 + t eps` (Lipman et al. 2023; Liu et al. 2023); alpha(1) = 0."""
    return Process("flow", lambda t: 1 - t, _zero, lambda t: t)


def ir_sde(lam: float = 50 / 255, eps: float = 0.005, s: float = 0.008) -> Process:
    """Mean reverting (Luo et al. 2023): alpha = exp(-theta_bar), sigma = lam sqrt(1 - alpha^2), alpha(1) = eps.

    The authors' cosine rate theta(t) = 1 - cos^2(phi) / cos^2(phi_0), phi = (t + s)/(1 + s) pi/2, in closed form.
    """
    rate = math.pi / 2 / (1 + s)
    phi0 = s * rate
    c0 = math.cos(phi0) ** 2

    def integral(t: Tensor) -> Tensor:  # of theta from 0 to t, arranged so that small t do not cancel
        cubic = t - torch.sin(2 * rate * t) / (2 * rate)
        return (math.cos(2 * phi0) * cubic + math.sin(2 * phi0) * torch.sin(rate * t) ** 2 / rate) / (2 * c0)

    total = float(integral(torch.ones((), dtype=torch.float64)))

    def theta_bar(t: Tensor) -> Tensor:
        return -math.log(eps) * (integral(t) / total).clamp_min(0)

    return Process(
        "ir-sde",
        lambda t: torch.exp(-theta_bar(t)),
        lambda t: -torch.expm1(-theta_bar(t)),
        lambda t: lam * torch.sqrt(-torch.expm1(-2 * theta_bar(t))),
        anchored=True,
        parameters={"lam": lam, "eps": eps, "s": s},
    )


def ouve(gamma: float = 1.5, sigma_min: float = 0.05, sigma_max: float = 0.5) -> Process:
    """Ornstein-Uhlenbeck, variance exploding (Richter et al. 2023, SGMSE+, eq. 8-9)."""
    log_ratio = math.log(sigma_max / sigma_min)

    def sigma(t: Tensor) -> Tensor:
        growth = torch.exp(-2 * gamma * t) * torch.expm1(2 * (gamma + log_ratio) * t)
        return sigma_min * torch.sqrt(growth.clamp_min(0) * log_ratio / (gamma + log_ratio))

    return Process(
        "ouve",
        lambda t: torch.exp(-gamma * t),
        lambda t: -torch.expm1(-gamma * t),
        sigma,
        anchored=True,
        parameters={"gamma": gamma, "sigma_min": sigma_min, "sigma_max": sigma_max},
    )


def rddm(variance: float = 0.01) -> Process:
    """Residual denoising (Liu et al. 2024): `x0 + a (y - x0) + b eps`, the continuous limit of the authors' increments.

    alpha_t proportional to T + 1 - t gives a = 1 - (1 - t)^2; beta_t^2 proportional to t gives b = sqrt(variance) t.
    """
    return Process(
        "rddm",
        lambda t: (1 - t) ** 2,
        lambda t: 1 - (1 - t) ** 2,
        lambda t: math.sqrt(variance) * t,
        anchored=True,
        parameters={"variance": variance},
    )


def resshift(kappa: float = 2.0, min_noise: float = 0.04, p: float = 0.3) -> Process:
    """Residual shifting (Yue et al. 2023, eq. 10 and 14): `(1 - eta) x0 + eta y + kappa sqrt(eta) eps`."""
    first = min(min_noise / kappa, min_noise)

    def sqrt_eta(t: Tensor) -> Tensor:
        return first * torch.exp(math.log(0.99 / first) * t**p)

    return Process(
        "resshift",
        lambda t: 1 - sqrt_eta(t) ** 2,
        lambda t: sqrt_eta(t) ** 2,
        lambda t: kappa * sqrt_eta(t),
        anchored=True,
        parameters={"kappa": kappa, "min_noise": min_noise, "p": p},
    )


def resfusion(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Resfusion (Shi et al. 2024): `(2a - 1) x0 + (1 - a) y + sqrt(1 - a^2) eps`, a = sqrt(alpha_bar) of VP.

    Time is rescaled so that t = 1 is the authors' T', where a = 1/2 and alpha = 0.
    """
    base = vp(beta_min, beta_max)
    slope = (beta_max - beta_min) / 2  # log a = -(beta_min u + slope u^2)/2 = -log 2 at u = T'
    end = (-beta_min + math.sqrt(beta_min**2 + 8 * slope * math.log(2))) / (2 * slope)
    other = 2 * math.log(2) / end  # log(2a) = (end - u)(slope u + other) / 2, so that 2a - 1 vanishes exactly at t = 1
    return Process(
        "resfusion",
        lambda t: torch.expm1(end * (1 - t) * (slope * end * t + other) / 2),
        lambda t: 1 - base.alpha(end * t),
        lambda t: base.sigma(end * t),
        anchored=True,
        parameters={"beta_min": beta_min, "beta_max": beta_max},
    )


def sb_ve(k: float = 2.6, c: float = 0.4) -> Process:
    """Schroedinger bridge with variance-exploding reference (Jukic et al. 2024, eq. 5-7); exactly y at t = 1."""

    def variance(t: Tensor) -> Tensor:
        return c * torch.expm1(2 * math.log(k) * t) / (2 * math.log(k))

    total = c * math.expm1(2 * math.log(k)) / (2 * math.log(k))

    def alpha(t: Tensor) -> Tensor:  # 1 - variance / total, written so that it vanishes exactly at t = 1
        return k ** (2 * t) * torch.expm1(2 * math.log(k) * (1 - t)) / math.expm1(2 * math.log(k))

    return Process(
        "sb-ve",
        alpha,
        lambda t: variance(t) / total,
        lambda t: torch.sqrt((variance(t) * alpha(t)).clamp_min(0)),
        anchored=True,
        parameters={"k": k, "c": c},
    )


PROCESSES: dict[str, Callable[..., Process]] = {
    "vp": vp,
    "vp-cosine": vp_cosine,
    "ve": ve,
    "edm": edm,
    "flow": flow_matching,
    "ir-sde": ir_sde,
    "ouve": ouve,
    "rddm": rddm,
    "resshift": resshift,
    "resfusion": resfusion,
    "sb-ve": sb_ve,
    "interpolant": interpolant,
}


def process(name: str, **parameters: Any) -> Process:
    """The process of that name.

    Raises:
        InputError: no such process, or a parameter it does not have.
    """
    if name not in PROCESSES:
        raise InputError(f"there is no process named {name!r}; choose one of {', '.join(PROCESSES)}")
    try:
        return PROCESSES[name](**parameters)
    except TypeError as error:
        raise InputError(f"process {name}: {error}") from error
