"""Multistep solvers: one denoiser evaluation per step, and the earlier ones remembered."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from suite.stepping import History, Knot, Model, Solver, ancestral_noise, first_order, noisy_first_order


class Multistep(Solver):
    """The first-order step plus `sum_j c_j (f_j - f_0)` over the remembered f (D or eps), newest first.

    Memory starts after a step from alpha = 0, where neither log-SNR nor sigma/alpha is finite, and the step to the
    clean state uses none of it.

    Attributes:
        order: values in play; the memory holds one less.
    """

    order: ClassVar[int]

    def coefficients(self, model: Model, t: Knot, s: Knot, earlier: list[Knot]) -> list[Tensor]:
        """The `c_j`, one for each of the earlier knots."""
        raise TypeError(f"{type(self).__name__} defines no coefficients")

    def remembered(self, mean: Tensor, eps: Tensor) -> Tensor:
        return mean

    def base(self, model: Model, mean: Tensor, eps: Tensor, t: Knot, s: Knot) -> Tensor:
        return first_order(mean, eps, s)

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        new = self.base(model, mean, eps, t, s)
        if bool(t.alpha == 0):
            return new, []
        f = self.remembered(mean, eps)
        if history and not s.clean:
            weights = self.coefficients(model, t, s, [knot for knot, _ in history])
            for c, (_, f_j) in zip(weights, history, strict=True):
                new = new + c * (f_j - f)
        return new, [(t, f), *history][: self.order - 1]


def interpolation_weights(nodes: list[Tensor], moments: list[Tensor]) -> list[Tensor]:
    """Weights of `f_j - f_0` for the quadrature that is exact on polynomials of degree `len(nodes)`, one or two.

    Args:
        nodes: abscissae of the earlier values, the newest being at 0.
        moments: `int w(u) u^k du` over the step, k = 1, 2.
    """
    if len(nodes) == 1:
        return [moments[0] / nodes[0]]
    a, b = nodes
    first, second = moments
    return [(second - b * first) / (a * (a - b)), (second - a * first) / (b * (b - a))]


class DPMpp2M(Multistep):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): extrapolates D linearly in lambda = log(alpha/sigma).

    `z_s = (sigma_s/sigma_t) z + alpha_s (1 - e^-h) (D + (D - D_prev) / (2r))`, r = h_prev / h.

    Args:
        midpoint: True is the paper's rule, above; False integrates the line exactly, which puts `1 - (1 - e^-h)/h` in
            place of `(1 - e^-h)/2` (MRS's ODE-2).
    """

    name = "dpmpp-2m"
    order = 2

    def __init__(self, midpoint: bool = True) -> None:
        self.midpoint = midpoint

    def coefficients(self, model: Model, t: Knot, s: Knot, earlier: list[Knot]) -> list[Tensor]:
        h = s.log_snr - t.log_snr
        node = (earlier[0].log_snr - t.log_snr) / h
        moment = -torch.expm1(-h) / 2 if self.midpoint else 1 + torch.expm1(-h) / h
        return [s.alpha * moment / node]


class DPMpp3M(Multistep):
    """DPM-Solver++ multistep of order three: D extrapolated by the parabola through its last three values, in lambda.

    `z_s = (sigma_s/sigma_t) z + alpha_s h int e^{-h(1 - tau)} D(tau) d tau`, tau from 0 to 1 along the step, with the
    parabola integrated exactly.

    Args:
        halved: halve the weight of the curvature, as Lu et al.'s published implementation and MRS's ODE-3 do; it costs an
            order.
    """

    name = "dpmpp-3m"
    order = 3

    def __init__(self, halved: bool = False) -> None:
        self.curvature = 0.5 if halved else 1.0

    def coefficients(self, model: Model, t: Knot, s: Knot, earlier: list[Knot]) -> list[Tensor]:
        h = s.log_snr - t.log_snr
        nodes = [(knot.log_snr - t.log_snr) / h for knot in earlier]
        first = 1 + torch.expm1(-h) / h  # h int e^{-h(1 - tau)} tau^k d tau, k = 1, 2, by parts
        second = self.curvature * (1 - 2 * first / h)
        return [s.alpha * w for w in interpolation_weights(nodes, [first, second])]


class DPMppSDE2M(Multistep):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, section 5): the ancestral DDIM step with D extrapolated in lambda.

    `z_s = (sigma_s/sigma_t) e^-h z + alpha_s (1 - e^-2h) (D + (D - D_prev) / (2r)) + sigma_s sqrt(1 - e^-2h) xi`.

    Args:
        midpoint: True is the paper's rule, above; False integrates the line exactly (MRS's SDE-2), as in `DPMpp2M`.
    """

    name = "dpmpp-sde"
    order = 2

    def __init__(self, midpoint: bool = True) -> None:
        self.midpoint = midpoint

    def base(self, model: Model, mean: Tensor, eps: Tensor, t: Knot, s: Knot) -> Tensor:
        return mean if s.clean else noisy_first_order(model, mean, eps, s, ancestral_noise(t, s))

    def coefficients(self, model: Model, t: Knot, s: Knot, earlier: list[Knot]) -> list[Tensor]:
        h = s.log_snr - t.log_snr
        node = (earlier[0].log_snr - t.log_snr) / h
        moment = -torch.expm1(-2 * h) / 2 if self.midpoint else 1 + torch.expm1(-2 * h) / (2 * h)
        return [s.alpha * moment / node]


class DEIS(Multistep):
    """tAB-DEIS (Zhang and Chen 2023): eps extrapolated in t by the polynomial through its last three values.

    `z_s / alpha_s = z / alpha_t + int (d rho / dt) eps(t) dt`, rho = sigma/alpha, the integrals by Gauss-Legendre in t.
    """

    name = "deis"
    order = 3
    quadrature: ClassVar[tuple[list[float], list[float]]] = (
        [0.0694318442029737, 0.3300094782075719, 0.6699905217924281, 0.9305681557970263],
        [0.1739274225687269, 0.3260725774312731, 0.3260725774312731, 0.1739274225687269],
    )

    def remembered(self, mean: Tensor, eps: Tensor) -> Tensor:
        return eps

    def coefficients(self, model: Model, t: Knot, s: Knot, earlier: list[Knot]) -> list[Tensor]:
        step = s.now - t.now
        tau, weight = torch.tensor(self.quadrature, dtype=torch.float64)
        times = t.now + step * tau
        alpha, sigma = model.process.alpha(times), model.process.sigma(times)
        alpha1, _, sigma1 = model.process.derivatives(times)
        speed = weight * step * (sigma1 * alpha - sigma * alpha1) / alpha**2  # (d rho / dt) dt
        moments = [(speed * tau**k).sum() for k in (1, 2)]
        nodes = [(knot.now - t.now) / step for knot in earlier]
        return [s.alpha * w for w in interpolation_weights(nodes, moments)]
