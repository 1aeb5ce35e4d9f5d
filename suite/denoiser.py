"""A denoiser answers one question, `E[x0 | x_t, y]`, whatever the network behind it was trained to output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suite.errors import InputError
from suite.process import Process, Schedule

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]

HEADS = ("eps", "x0", "v", "score", "residual", "resnoise", "flow")
_SMALLEST = 1e-4  # a head that divides the network's error by less than this is refused


class Denoiser:
    """`E[x0 | x_t, y]` under one process.

    A guidance method is a denoiser that wraps another one, so each works with every solver.

    Attributes:
        process: the process whose states it takes.
        differentiable: False when autograd cannot pass through it (cached or quantised networks).
    """

    process: Process
    differentiable: bool = True

    def __init__(self, process: Process) -> None:
        self.process = process

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """`E[x0 | x_t = x, y]` for `x` `(B, C, *spatial)`; `t` is `(B or 1, 1, ..., 1)`, or per element like `x`."""
        raise TypeError(f"{type(self).__name__} defines no __call__")

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`(mean, eps)`, the two directions a solver mixes; eps is zero where sigma = 0 (the solver draws it there)."""
        mean = self(x, t, y)
        return mean, noise_estimate(self.process, x, t, mean, y)


def noise_estimate(process: Process, x: Tensor, t: Tensor, mean: Tensor, y: Tensor | None = None) -> Tensor:
    """`eps = (z - alpha mean) / sigma`, zero where sigma = 0."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    inverse = torch.where(sigma > 0, 1 / sigma, torch.zeros_like(sigma))
    return inverse.to(x.dtype) * (process.shift(x, t, y) - alpha.to(x.dtype) * mean)


def target(
    head: str,
    process: Process,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    y: Tensor | None = None,
    weight: Schedule | None = None,
) -> Tensor:
    """What a network with this head is trained to output at `process.marginal(x0, t, eps, y)`.

    Args:
        head: one of `HEADS`.
        x0, eps: clean signal and noise `(B, C, *spatial)`.
        t: times that broadcast against `x0`.
        y: degraded signal in the same space (anchored processes, and heads residual and resnoise).
        weight: the `c(t)` of the resnoise head; see `HeadDenoiser`.

    Raises:
        InputError: unknown head, or `y` missing.
    """
    alpha, sigma = process.alpha(t).to(x0.dtype), process.sigma(t).to(x0.dtype)
    match head:
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":
            return alpha * eps - sigma * x0
        case "score":
            return -eps / sigma
        case "residual":
            return _needed(y, head) - x0
        case "resnoise":
            return eps + _resnoise_weight(process, weight, t).to(x0.dtype) * (_needed(y, head) - x0)
        case "flow":
            alpha1, beta1, sigma1 = (d.to(x0.dtype) for d in process.derivatives(t))
            velocity = alpha1 * x0 + sigma1 * eps
            return velocity + beta1 * _needed(y, head) if process.anchored else velocity
    raise _unknown(head)


class HeadDenoiser(Denoiser):
    """A network with one of the usual heads, read as `E[x0 | x_t, y]`.

    With `z = x_t - beta y = alpha x0 + sigma eps` and network output `o`:

        head      o                                 x0
        eps       eps                               (z - sigma o) / alpha
        x0        x0                                o
        v         alpha eps - sigma x0              (alpha z - sigma o) / (alpha^2 + sigma^2)
        score     -eps / sigma                      (z + sigma^2 o) / alpha
        residual  y - x0                            y - o
        resnoise  eps + c (y - x0)                  (z - sigma (o - c y)) / (alpha + sigma c)
        flow      alpha' x0 + beta' y + sigma' eps  (sigma (o - beta' y) - sigma' z) / (sigma alpha' - alpha sigma')

    Sources: Ho et al. 2020 (eps), Salimans and Ho 2022 (v), Song et al. 2021 (score), Liu et al. 2024, RDDM (residual),
    Shi et al. 2024, Resfusion (resnoise), Lipman et al. 2023 (flow). Resfusion's own weight of the residual is

        c_n = (1 - sqrt(a_n)) sqrt(1 - abar_n) / (1 - a_n) = sqrt(1 - abar_n) / (1 + sqrt(a_n))

    with a_n = abar_n / abar_{n-1}; for fine steps a_n -> 1, so that `c = sqrt(1 - abar) / 2 = sigma / 2`, the default.
    A checkpoint trained on the discrete chain passes its own `weight`.

    Args:
        network: `network(x_t, t, y)`; `t` arrives as the solver gave it (float64, broadcastable).
        process: the process it was trained on.
        head: one of `HEADS`.
        weight: `c(t)` of the resnoise head (default `sigma / 2`).
        differentiable: False refuses methods that differentiate through the network.
    """

    def __init__(
        self,
        network: Network,
        process: Process,
        head: str,
        *,
        weight: Schedule | None = None,
        differentiable: bool = True,
    ) -> None:
        super().__init__(process)
        if head not in HEADS:
            raise _unknown(head)
        self.network, self.head, self.weight, self.differentiable = network, head, weight, differentiable

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """See `Denoiser`.

        Raises:
            InputError: `y` is missing, or the head does not determine x0 at this time (eps where alpha = 0).
        """
        o = self.network(x, t, y)
        if self.head == "x0":
            return o
        process = self.process
        weight = _resnoise_weight(process, self.weight, t)
        slopes = process.derivatives(t) if self.head == "flow" else None
        z = process.shift(x, t, y)
        return read_head(self.head, o, z, process.alpha(t), process.sigma(t), y, weight=weight, slopes=slopes)


def read_head(
    head: str,
    o: Tensor,
    z: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    y: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    slopes: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """x0 from a network's output `o` at `z = alpha x0 + sigma eps`: the table of `HeadDenoiser`.

    Args:
        head: one of `HEADS`.
        o, z: `(B, C, *spatial)`; alpha, sigma broadcast against them.
        y: degraded signal (heads residual and resnoise, and flow of an anchored process).
        weight: c of the resnoise head (default `sigma / 2`).
        slopes: `(alpha', beta', sigma')` of the flow head.

    Raises:
        InputError: `y` is missing, or the head does not determine x0 here (eps where alpha = 0).
    """
    one, of_y = torch.ones_like(sigma), torch.zeros_like(sigma)
    match head:
        case "eps":
            of_z, of_o, over = one, -sigma, alpha
        case "x0":
            return o
        case "v":
            of_z, of_o, over = alpha, -sigma, alpha**2 + sigma**2
        case "score":
            of_z, of_o, over = one, sigma**2, alpha
        case "residual":
            return _needed(y, head) - o
        case "resnoise":
            c = sigma / 2 if weight is None else weight
            of_z, of_o, of_y, over = one, -sigma, sigma * c, alpha + sigma * c
        case "flow" if slopes is not None:
            alpha1, beta1, sigma1 = slopes
            of_z, of_o, of_y, over = -sigma1, sigma, -sigma * beta1, sigma * alpha1 - alpha * sigma1
        case _:
            raise _unknown(head)
    if not bool((over.abs() > _SMALLEST * of_o.abs()).all()):  # written so that NaN is refused too
        raise InputError(
            f"a network with the {head} head does not determine x0 where alpha vanishes, as it does at the start of some "
            "processes; use an x0 head there, or start at a smaller t"
        )
    mean = (of_z / over).to(z.dtype) * z + (of_o / over).to(z.dtype) * o
    return mean + (of_y / over).to(z.dtype) * _needed(y, head) if bool((of_y != 0).any()) else mean


def _resnoise_weight(process: Process, weight: Schedule | None, t: Tensor) -> Tensor:
    return process.sigma(t) / 2 if weight is None else weight(t)


def _needed(y: Tensor | None, head: str) -> Tensor:
    if y is None:
        raise InputError(f"the {head} head needs the degraded signal y, and none was given")
    return y


def _unknown(head: str) -> InputError:
    return InputError(f"there is no network head named {head!r}; choose one of {', '.join(HEADS)}")
